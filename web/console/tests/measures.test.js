import { expect, test } from "vitest";
import { Measures } from "../src/measures.js";

/** @param {number} at in seconds @param {Record<string, number>} counters @param {object} [more] */
function answer(at, counters, more = {}) {
  return /** @type {import("@natskit/client").PlatformOverview} */ ({
    time: new Date(at * 1000).toISOString(),
    hub: { name: "hub-1", version: "1", problems: [], counters },
    accounts: 0,
    projects: 0,
    nats_servers: [],
    nats_servers_expected: 1,
    connected: [],
    runners: [],
    use: [],
    backup: { begun: null, verified: null },
    alerts: [],
    ...more,
  });
}

/** @param {string} name @param {number} messages @param {string} [since] */
function server(name, messages, since = "a") {
  return { nats_servers: [{ name, since, messages, connections: 3 }] };
}

/** @param {string} name */
function of(name, counters = { callouts: 0, callouts_refused: 0 }) {
  return { hub: { name, version: "1", problems: [], counters } };
}

test("each hub is compared with its own answer before", () => {
  const measures = new Measures();
  measures.take(answer(0, { callouts: 10, callouts_refused: 0 }));
  measures.take(answer(5, {}, of("hub-2", { callouts: 500, callouts_refused: 7 })));
  expect(measures.series.connects.map((line) => line.at(-1))).toEqual([5, null, null]);
  measures.take(answer(10, { callouts: 30, callouts_refused: 5 }));
  expect(measures.series.connects.map((line) => line.at(-1))).toEqual([10, 2, 0.5]);
  measures.take(answer(15, {}, of("hub-2", { callouts: 510, callouts_refused: 7 })));
  expect(measures.series.connects.map((line) => line.at(-1))).toEqual([15, 3, 0.5]);
});

test("a counter that was started anew gives no rate", () => {
  const measures = new Measures();
  measures.take(answer(0, {}, server("n", 100)));
  measures.take(answer(2, {}, server("n", 140)));
  measures.take(answer(4, {}, server("n", 3, "later")));
  expect(measures.series.messages[1]).toEqual([null, 20, 0]);
});

test("the share of a processor is that since the answer before, of any hub", () => {
  const measures = new Measures();
  const use = (/** @type {number} */ seconds) => ({ use: [{ project_id: "p", cpu_seconds: seconds }] });
  measures.take(answer(0, {}, use(1)));
  expect(measures.cpu("p")).toBe(null);
  measures.take(answer(4, {}, { ...of("hub-2"), ...use(3) }));
  expect(measures.cpu("p")).toBe(0.5);
  measures.take(answer(4, {}, { ...of("hub-2"), ...use(3) }));
  expect(measures.cpu("p"), "the same answer again").toBe(0.5);
  measures.take(answer(8, {}, use(0)));
  expect(measures.cpu("p"), "the project was started again").toBe(null);
});

test("what is older than ten minutes is dropped", () => {
  const measures = new Measures();
  for (let at = 0; at <= 1200; at += 60) measures.take(answer(at, {}, server("n", at)));
  expect(measures.series.connections.map((line) => line.length)).toEqual([11, 11]);
  expect(measures.series.connections[0]?.[0]).toBe(600);
});
