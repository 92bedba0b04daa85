/** Starts the nats-server of the browser tests, on free ports and with two users, and stops it at their end. */
import { spawn } from "node:child_process";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const PROGRAM = fileURLToPath(new URL("../../../../.venv/bin/nats-server", import.meta.url));
const PATIENCE = 10_000;

/** "account" is whom the client connects as; "peer" is the test, which answers in the place of the hub and projects. */
const config = (/** @type {string} */ folder) => `
host: 127.0.0.1
port: -1
ports_file_dir: ${JSON.stringify(folder)}
max_payload: 64KB
websocket { host: 127.0.0.1, port: -1, no_tls: true }
authorization {
  users: [
    { user: account, permissions: { publish: { deny: "projects.foreign.>" } } }
    { user: peer }
  ]
}
`;

export default async function setup(/** @type {import("vitest/node").TestProject} */ project) {
  const folder = await mkdtemp(join(tmpdir(), "natskit-web-"));
  await writeFile(join(folder, "nats.conf"), config(folder));
  const server = spawn(PROGRAM, ["-c", join(folder, "nats.conf")], { stdio: ["ignore", "ignore", "pipe"] });
  let log = "";
  server.stderr.on("data", (data) => {
    log += data;
  });
  const ended = new Promise((resolve) => {
    server.on("error", (error) => {
      log += error;
      resolve(undefined);
    });
    server.on("exit", resolve);
  });
  const stop = async () => {
    server.kill();
    await ended;
    await rm(folder, { recursive: true });
  };
  try {
    project.provide("natsUrl", await websocketUrl(folder, server));
  } catch (error) {
    await stop();
    throw new Error(`nats-server did not start: ${error}\n${log}`);
  }
  return stop;
}

/** nats-server writes the ports that it chose into a file, once it listens. */
async function websocketUrl(
  /** @type {string} */ folder,
  /** @type {import("node:child_process").ChildProcess} */ server,
) {
  for (const deadline = Date.now() + PATIENCE; Date.now() < deadline; ) {
    if (server.exitCode !== null || server.pid === undefined) throw new Error("it ended");
    const name = (await readdir(folder)).find((file) => file.endsWith(".ports"));
    const text = name ? await readFile(join(folder, name), "utf8") : "";
    if (text.trimEnd().endsWith("}")) return JSON.parse(text).websocket[0];
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  throw new Error(`it does not listen after ${PATIENCE} ms`);
}
