import { expect, test } from "vitest";
import { Screen } from "../src/screen.js";

/** The lines that a screen shows after some output. @param {...string} output one write each */
function lines(...output) {
  const screen = new Screen();
  for (const text of output) screen.write("stdout", text);
  screen.update();
  return screen.lines.map(({ runs }) => runs.map(({ text }) => text).join(""));
}

test.each([
  ["a line break begins a line", ["a\nb"], ["a", "b"]],
  ["a carriage return begins the same line again", ["10 %\r20"], ["20 %"]],
  ["a backspace goes back", ["ab\bc"], ["ac"]],
  ["colours are left out", ["\x1b[31mred\x1b[0m"], ["red"]],
  ["a sequence may come in two pieces", ["a\x1b[", "2Kb"], [" b"]],
  ["the line can be erased", ["gone\r\x1b[Know"], ["now"]],
  ["the screen can be erased", ["a\nb\n\x1b[2J\x1b[Hc"], ["c"]],
  ["the cursor goes up", ["a\nb\n\x1b[2Ac"], ["c", "b", ""]],
  ["the cursor is put somewhere", ["\x1b[2;3Hx"], ["", "  x"]],
  ["a title is not shown", ["\x1b]0;title\x07a", "\x1b]0;ti", "tle\x1b\\b"], ["ab"]],
  ["a pair of surrogates is not torn", ["😀\r\x1b[Cx"], [" x"]],
])("%s", (_, output, expected) => {
  expect(lines(...output)).toEqual(expected);
});

test("output of two streams is told apart", () => {
  const screen = new Screen();
  screen.write("stdout", "out");
  screen.write("stderr", "err");
  expect(screen.content()).toEqual([
    { stream: "stdout", text: "out" },
    { stream: "stderr", text: "err" },
  ]);
});

test("however much is printed, what is kept is bounded, and what is cut is counted", () => {
  const screen = new Screen();
  let printed = 0;
  for (let n = 0; n < 200; n++) {
    const text = `${n} ${"x".repeat(20)}\n`.repeat(500);
    printed += text.length;
    screen.write("stdout", text);
    if (n % 10 === 0) screen.update();
  }
  screen.update();
  const kept = screen.content().reduce((sum, { text }) => sum + text.length, 0);
  expect(screen.lines.length).toBeLessThanOrEqual(5_500);
  expect(kept).toBeLessThanOrEqual(550_000);
  expect(screen.cut + kept).toBe(printed);
  expect(screen.lines.at(-2)?.runs[0].text).toBe(`199 ${"x".repeat(20)}`);
});
