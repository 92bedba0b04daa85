import { expect, test } from "vitest";
import { visible } from "../src/page.js";

test.each([
  ["notes.txt", "notes.txt"],
  ["a\nb", "a␊b"],
  ["\u202eexe.txt", "\\u202eexe.txt"],
  ["\u2028x", "\\u2028x"],
  ["größe 😀", "größe 😀"],
])("%j is shown as %s", (name, shown) => {
  expect(visible(name)).toBe(shown);
});
