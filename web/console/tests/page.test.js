import { expect, test } from "vitest";
import { typedOver, visible } from "../src/page.js";

test.each([
  ["notes.txt", "notes.txt"],
  ["a\nb", "a␊b"],
  ["\u202eexe.txt", "\\u202eexe.txt"],
  ["\u2028x", "\\u2028x"],
  ["größe 😀", "größe 😀"],
])("%j is shown as %s", (name, shown) => {
  expect(visible(name)).toBe(shown);
});

test.each([
  ["a\u200bb.txt", "a\\u200bb.md", "a\u200bb.md"],
  ["a\nb", "c a␊b", "c a\nb"],
  ["\u202eexe.txt", "exe.txt", "exe.txt"],
  ["größe 😀", "\\u200b", "\\u200b"],
  ["a\u200b\\u200b", "b\\u200b", "b\\u200b"],
  ["a$&\u200b", "$&\\u200b", "$&\u200b"],
])("%j, over which %s is typed, is %j", (name, typed, wanted) => {
  expect(typedOver(typed, name)).toBe(wanted);
});
