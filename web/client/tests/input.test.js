import { expect, test } from "vitest";
import { CHUNK_BYTES, Input } from "../src/input.js";

const bytes = (/** @type {string} */ text) => new TextEncoder().encode(text);
const texts = (/** @type {Input} */ input, offset = 0) =>
  input.messages(offset).map(({ offset: at, data }) => [at, atob(data)]);

test("input is kept until it is taken, and sent again from any place", () => {
  const input = new Input();
  expect([input.add(bytes("ab")), input.add(bytes("cde"))]).toEqual([0, 2]);
  expect(texts(input)).toEqual([[0, "abcde"]]);
  expect(texts(input, 2)).toEqual([[2, "cde"]]);
  input.take(3);
  expect(texts(input)).toEqual([[3, "de"]]);
  for (const wrong of [2, 99, Number.NaN]) input.take(wrong);
  expect([input.start, input.end]).toEqual([3, 5]);
});

test("a large text is sent in parts, and waits when too much is on its way", async () => {
  const input = new Input();
  input.add(new Uint8Array(1024 * 1024));
  expect(input.isFull).toBe(true);
  expect(input.messages(0)).toHaveLength((1024 * 1024) / CHUNK_BYTES);
  const taken = input.taken();
  input.take(1);
  await taken;
  expect(input.isFull).toBe(false);
});
