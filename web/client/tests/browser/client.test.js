/** The client in Chromium against a real nats-server. The test answers in the place of the hub and of a project. */
import { headers, wsconnect } from "@nats-io/nats-core";
import { afterEach, beforeEach, expect, inject, test, vi } from "vitest";
import { connect } from "../../src/natskit.js";

const url = /** @type {string} */ (/** @type {(name: string) => unknown} */ (inject)("natsUrl"));
const account = "account";

/**
 * Wait for a condition, on a machine that may be busy with other tests.
 * @param {() => boolean} condition
 */
const until = (condition) => vi.waitUntil(condition, { timeout: 20_000 });

/** @type {import("../../src/natskit.js").Client} */
let client;
/** @type {import("@nats-io/nats-core").NatsConnection} */
let peer;
/** @type {string[]} */
let states;

beforeEach(async () => {
  states = [];
  peer = await wsconnect({ servers: url, user: "peer" });
  client = await connect(
    {
      account_id: account,
      session_id: "s",
      email: "ada@example.org",
      must_change_password: false,
      expires_at: "",
      nats: { path: url, inbox_prefix: "_INBOX.account.a" },
    },
    (state) => states.push(state),
  );
});

afterEach(async () => {
  await client.close();
  await peer.close();
});

/**
 * Answer requests to a subject, and count them.
 * @param {string} subject
 * @param {(request: {method: string, params: Record<string, any>}, count: number) => object | undefined} answer
 */
async function serve(subject, answer) {
  const seen = { count: 0 };
  peer.subscribe(subject, {
    callback: (_, message) => {
      seen.count++;
      const body = answer(message.json(), seen.count);
      if (body) message.respond(JSON.stringify({ jsonrpc: "2.0", id: 1, ...body }));
    },
  });
  await peer.flush();
  return seen;
}

test("connects, and reports each state", async () => {
  expect(states).toEqual(["connecting", "connected"]);
  expect(await client.roundTrip()).toBeGreaterThan(0);
  await client.close();
  expect(states.at(-1)).toBe("closed");
});

test("calls the hub as the account, and a project", async () => {
  await serve("hub.api.account", ({ method, params }) => ({ result: { method, params } }));
  await serve("projects.p.api", ({ method }) => ({ result: { method } }));
  expect(await client.callHub("list_invoices", { year: 2026 })).toEqual({
    method: "list_invoices",
    params: { year: 2026 },
  });
  expect(await client.callProject("p", "read_text_file", { path: "x" })).toEqual({ method: "read_text_file" });
});

test("throws the error of an answer", async () => {
  const data = { kind: "conflict", actual_version: "v2" };
  await serve("projects.p.api", () => ({ error: { code: -32003, message: "changed", data } }));
  await expect(client.callProject("p", "write_text_file")).rejects.toMatchObject({
    name: "NatskitError",
    kind: "conflict",
    message: "changed",
    data: { actual_version: "v2" },
  });
});

test("waits when a busy hub asks it to, and calls again", async () => {
  const busy = { error: { code: -32005, message: "busy", data: { kind: "unavailable", retry_after: 0.05 } } };
  const seen = await serve("hub.api.account", (_, count) => (count === 1 ? busy : { result: "done" }));
  expect(await client.callHub("bill")).toBe("done");
  expect(seen.count).toBe(2);
});

test("says that nobody answers", async () => {
  await expect(client.callProject("absent", "ping")).rejects.toMatchObject({
    kind: "unavailable",
    message: "the project does not answer ping: is it started?",
  });
});

test("says that an answer is late", async () => {
  await serve("projects.p.api", () => undefined);
  await expect(client.callProject("p", "ping", {}, { timeout: 100 })).rejects.toMatchObject({ kind: "timeout" });
});

test("says that a subject is forbidden", async () => {
  const refused = vi.fn();
  client.onRefused(refused);
  await expect(client.callProject("foreign", "ping")).rejects.toMatchObject({ kind: "forbidden" });
  expect(refused).toHaveBeenCalledWith("projects.foreign.api");
});

test("does not send what nats-server would not accept", async () => {
  const text = "x".repeat(64 * 1024);
  await expect(client.callProject("p", "write_text_file", { text })).rejects.toMatchObject({
    kind: "limit",
    data: { limit: 64 * 1024 },
  });
  expect(client.state).toBe("connected");
});

test("repeats a call that was lost with its connection if the method allows it", async () => {
  const seen = await serve("projects.p.api", (_, count) => (count === 1 ? undefined : { result: "again" }));
  const answer = client.callProject("p", "list_directory");
  await until(() => seen.count === 1);
  await client.nats.reconnect();
  expect(await answer).toBe("again");
  expect(seen.count).toBe(2);
});

test("does not repeat any other call", async () => {
  const seen = await serve("projects.p.api", (_, count) => (count === 1 ? undefined : { result: "again" }));
  const answer = client.callProject("p", "charge_card", {}, { timeout: 2_000 });
  const failure = expect(answer).rejects.toMatchObject({ name: "NatskitError" });
  await until(() => seen.count === 1);
  await client.nats.reconnect();
  await failure;
  expect(seen.count).toBe(1);
});

test("subscriptions survive a reconnect", async () => {
  /** @type {string[]} */
  const heard = [];
  const end = client.subscribe("events.account.>", (data) => heard.push(new TextDecoder().decode(data)));
  await client.nats.flush();
  peer.publish("events.account.a", "one");
  await until(() => heard.length === 1);
  const back = new Promise((resolve) => client.onReturn(() => resolve(undefined)));
  await client.nats.reconnect();
  await back;
  await client.nats.flush();
  peer.publish("events.account.a", "two");
  await until(() => heard.length === 2);
  end();
  await client.nats.flush();
  peer.publish("events.account.a", "three");
  await peer.flush();
  await client.nats.flush();
  expect(heard).toEqual(["one", "two"]);
});

test("publishes many messages, all of them", async () => {
  let count = 0;
  let bytes = 0;
  peer.subscribe("projects.p.b", {
    callback: (_, message) => {
      count++;
      bytes += message.data.length;
    },
  });
  await peer.flush();
  const progress = vi.fn();
  expect(await client.publishMany("projects.p.b", new Uint8Array(5), 50_000, progress)).toMatchObject({
    count: 50_000,
  });
  expect(progress).toHaveBeenLastCalledWith(50_000);
  await until(() => count === 50_000);
  expect(bytes).toBe(250_000);
  await expect(client.publishMany("projects.*", new Uint8Array(5), 1)).rejects.toMatchObject({
    kind: "invalid_params",
  });
});

test("asks for as many parts of the list as it takes", async () => {
  const all = Array.from({ length: 2_500 }, (_, n) => ({ project_id: `p${n}` }));
  await serve("hub.api.account", ({ params }) => {
    if (params.limit > 1_000) return { error: { code: -32004, message: "too large", data: { kind: "limit" } } };
    return { result: all.slice(params.offset, params.offset + params.limit) };
  });
  expect(await client.listProjects()).toEqual(all);
});

/**
 * A project that runs one command: it remembers who asked and what the reader sends, and the test sends the frames.
 */
async function project() {
  const control = /** @type {{type: string, seq?: number}[]} */ ([]);
  let reply = "";
  peer.subscribe("projects.p.api", {
    callback: (_, message) => {
      reply = String(message.reply).replace(/\.0$/, ".1");
    },
  });
  peer.subscribe("projects.p.streams.s1", {
    callback: (_, message) => {
      control.push(message.json());
    },
  });
  await peer.flush();
  return {
    control,
    asked: () => until(() => reply !== ""),
    /** @param {number} seq @param {string} kind @param {string} [body] */
    send(seq, kind, body = "") {
      const h = headers();
      h.set("Natskit-Stream", kind);
      h.set("Natskit-Seq", String(seq));
      peer.publish(reply, body, { headers: h, reply: "_INBOX.project.p.s1" });
    },
  };
}

const result = { exit_code: 3, signal: null, signal_number: null, timed_out: false, cancelled: false };
const end = JSON.stringify({ jsonrpc: "2.0", id: 1, result });

test("reads a command's output in order, and asks for frames that were lost", async () => {
  const { control, asked, send } = await project();
  const run = client.exec("p", { command: "make" });
  await asked();
  send(0, "start");
  send(2, "stderr", "two");
  await until(() => control.some(({ type, seq }) => type === "resume" && seq === 1));
  send(1, "stdout", "one");
  send(2, "stderr", "two");
  send(3, "end", end);
  const output = [];
  for await (const { stream, data } of run) output.push([stream, new TextDecoder().decode(data)]);
  expect(output).toEqual([
    ["stdout", "one"],
    ["stderr", "two"],
  ]);
  expect(await run.done).toEqual(result);
  expect(run.position).toBe(null);
  await until(() => control.some(({ type, seq }) => type === "ack" && seq === 3));
  expect(control.filter(({ type }) => type === "cancel")).toEqual([]);
});

test("ends the command when the loop is left", async () => {
  const { control, asked, send } = await project();
  const run = client.exec("p", { command: "yes" });
  await asked();
  send(0, "start");
  send(1, "stdout", "y");
  for await (const _ of run) break;
  await until(() => control.some(({ type }) => type === "cancel"));
});

test("another reader continues from a position", async () => {
  const { control, asked, send } = await project();
  const first = client.exec("p", { command: "make" });
  await asked();
  send(0, "start");
  send(1, "stdout", "one");
  const output = first[Symbol.asyncIterator]();
  expect((await output.next()).value?.stream).toBe("stdout");
  expect(first.position).toEqual({ stream: "s1", seq: 2 });
  const second = client.resume("p", /** @type {import("../../src/natskit.js").Position} */ (first.position));
  await until(() => control.some(({ type }) => type === "resume"));
  expect(control.find(({ type }) => type === "resume")).toEqual({ type: "resume", seq: 2 });
  second[Symbol.asyncIterator]().return(undefined);
  await output.return(undefined);
});

test("a refused command is an error of the loop and of done", async () => {
  const data = { kind: "invalid_params" };
  await serve("projects.p.api", () => ({ error: { code: -32602, message: "no such folder", data } }));
  const run = client.exec("p", { command: "ls", cwd: "nowhere" });
  const loop = async () => {
    for await (const _ of run);
  };
  await expect(loop()).rejects.toMatchObject({ kind: "invalid_params", message: "no such folder" });
  await expect(run.done).rejects.toMatchObject({ kind: "invalid_params" });
});
