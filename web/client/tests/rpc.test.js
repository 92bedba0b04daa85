import { expect, test } from "vitest";
import { NatskitError } from "../src/natskit.js";
import { readResponse, request } from "../src/rpc.js";

const bytes = (/** @type {string} */ text) => new TextEncoder().encode(text);

test("a request is JSON-RPC 2.0", () => {
  expect(JSON.parse(request("ping", { a: 1 }))).toEqual({ jsonrpc: "2.0", id: 1, method: "ping", params: { a: 1 } });
});

test("a response is its result, also when that is nothing", () => {
  expect(readResponse(bytes('{"jsonrpc": "2.0", "id": 1, "result": {"a": [1]}}'))).toEqual({ a: [1] });
  expect(readResponse(bytes('{"jsonrpc": "2.0", "id": 1, "result": null}'))).toBe(null);
});

test("an error has its kind, its message and its other data", () => {
  const body = { error: { code: -32003, message: "changed", data: { kind: "conflict", actual_version: "v2" } } };
  try {
    readResponse(bytes(JSON.stringify(body)));
    expect.unreachable();
  } catch (error) {
    if (!(error instanceof NatskitError)) throw error;
    expect([error.kind, error.message, error.data]).toEqual(["conflict", "changed", { actual_version: "v2" }]);
  }
});

test("an error without a kind, and what is not JSON, are internal errors", () => {
  const failing = [JSON.stringify({ error: { code: -32603, message: "broken" } }), "<html>"];
  for (const body of failing) {
    expect(() => readResponse(bytes(body))).toThrow(expect.objectContaining({ kind: "internal_error" }));
  }
});
