import { expect, test } from "vitest";
import { restore, shown } from "../src/line-endings.js";

test.each([
  ["a\r\nb\nc\rd", "a\nb\nnew\nd", "a\r\nb\nnew\rd"],
  ["a\r\nb\nc\rd", "a\nnew\nb\nc\nd", "a\r\nnew\r\nb\nc\rd"],
  ["a\r\nb\n", "ab\n", "ab\n"],
  ["ab\nc\r\n", "a\nb\nc\n", "a\nb\nc\r\n"],
  ["a\r\nb\nc\r\n", "c\n", "c\r\n"],
  ["a\r\nb\n", "", ""],
  ["", "a\nb", "a\nb"],
  ["a\r\n", "a\nb\nc", "a\r\nb\r\nc"],
  ["\ufeffa\r\nb", "a\nc", "\ufeffa\r\nc"],
])("%j, edited to %j, is saved as %j", (original, edited, saved) => {
  expect(restore(original, edited)).toBe(saved);
});

test("a text that was not edited is saved as it was", () => {
  const changed = [];
  const breaks = ["\n", "\r\n", "\r", "x"];
  for (let n = 0; n < 4 ** 6; n++) {
    const text = Array.from({ length: 6 }, (_, place) => breaks[Math.floor(n / 4 ** place) % 4]).join("");
    if (restore(text, shown(text)) !== text) changed.push(text);
  }
  expect(changed).toEqual([]);
});

test("a large file with many changes keeps the endings of the lines that stay", () => {
  const lines = Array.from({ length: 5_000 }, (_, n) => `line ${n}`);
  const original = lines.map((line, n) => line + (n % 2 ? "\r\n" : "\n")).join("");
  const edited = lines.map((line, n) => (n % 100 ? line : `changed ${n}`)).join("\n");
  const saved = restore(original, `${edited}\n`);
  expect(saved).toContain("line 1\r\nline 2\nline 3\r\n");
  expect(shown(saved)).toBe(`${edited}\n`);
});
