/** The console page. It uses natskit.js and nothing else; every text from outside becomes text, never HTML. */

import { NatskitError, askOverHttp, connect, doors, session, signIn, signOut } from "../src/natskit.js";
import { Sessions } from "./sessions.js";
import { Terminal } from "./terminal.js";
import { Files } from "./files.js";
import { element, guard, listItem, show } from "./page.js";

/** @typedef {{project_id: string, title: string, role: string, state: string, detail?: string,
 *   collaborators: {account_id: string, email: string, role: string}[]}} Project */

const MESSAGES = 1_000_000;
const ROUND_TRIP_EVERY = 2_000;

/** @type {import("../src/natskit.js").Client} */
let client;
/** @type {Project[]} */
let projects = [];
let selected = "";
let stopListening = () => {};
/** @type {ReturnType<typeof setInterval> | undefined} */
let roundTrips;

const terminal = new Terminal(() => client, () => selected);
const files = new Files(() => client, () => selected);
const sessions = new Sessions(() => client);

async function start() {
  let current;
  try {
    current = await session();
  } catch (error) {
    element("sign-in-error").textContent = error instanceof Error ? error.message : String(error);
  }
  if (current) await enter(current);
  else show("sign-in");
  const { oidc } = await doors().catch(() => ({ oidc: null }));
  if (!oidc) return;
  const link = element("oidc", HTMLAnchorElement);
  link.textContent = `Sign in with ${oidc.label}`;
  link.href = new URL(oidc.path, location.origin).pathname;
  link.hidden = false;
}

/** @param {import("../src/natskit.js").Session} current */
async function enter(current) {
  if (current.must_change_password) {
    show("new-password");
    return;
  }
  show("console");
  element("who").textContent = current.email;
  client = await connect(current, status);
  stopListening = client.subscribe(`events.account.${current.account_id}.>`, () => void refresh());
  client.onReturn(() => void refresh());
  roundTrips = setInterval(() => void measure(), ROUND_TRIP_EVERY);
  void measure();
  await refresh();
}

/** @param {import("../src/natskit.js").State} state @param {string} reason */
function status(state, reason) {
  if (state === "signed-out") {
    leave(`You were signed out: ${reason}.`);
    return;
  }
  const pill = element("connection");
  pill.dataset.state = state;
  pill.title = reason;
  element("connection-state").textContent = state;
  if (state !== "connected") element("round-trip").textContent = "";
}

async function measure() {
  if (client.state !== "connected" || document.hidden) return;
  const milliseconds = await client.roundTrip().catch(() => undefined);
  if (milliseconds !== undefined && client.state === "connected") {
    element("round-trip").textContent = `${milliseconds.toFixed(1)} ms`;
  }
}

/** @param {string} message */
function leave(message) {
  clearInterval(roundTrips);
  stopListening();
  sessions.close();
  projects = [];
  select("");
  show("sign-in");
  element("sign-in-error").textContent = message;
}

async function refresh() {
  await guard("projects-error", async () => {
    projects = await client.callHub("list_projects");
    projects.sort((a, b) => a.title.localeCompare(b.title));
    if (!projects.some((project) => project.project_id === selected)) selected = "";
    draw();
  });
}

/** @param {string} projectId */
function select(projectId) {
  if (projectId !== selected) {
    selected = projectId;
    terminal.clear();
    files.clear();
    for (const id of ["project-error", "share-error"]) element(id).textContent = "";
  }
  draw();
}

function draw() {
  element("projects").replaceChildren(
    ...projects.map((project) => {
      const item = document.createElement("li");
      const button = document.createElement("button");
      button.dataset.state = project.state;
      button.dataset.projectId = project.project_id;
      button.setAttribute("aria-current", String(project.project_id === selected));
      button.append(span("dot", ""), span("title", project.title));
      if (project.role !== "owner") button.append(span("role", "shared"));
      button.addEventListener("click", () => select(project.project_id));
      item.append(button);
      return item;
    }),
  );
  element("no-projects").hidden = projects.length > 0;
  const project = projects.find((candidate) => candidate.project_id === selected);
  element("nothing").hidden = project !== undefined;
  element("project").hidden = project === undefined;
  element("bench-button", HTMLButtonElement).disabled = project === undefined;
  if (project) drawProject(project);
}

/** @param {Project} project */
function drawProject(project) {
  const title = element("project-title", HTMLInputElement);
  if (document.activeElement !== title || title.dataset.of !== project.project_id) title.value = project.title;
  title.dataset.of = project.project_id;
  element("rename-button").hidden = title.value === project.title;
  element("project-id").textContent = project.project_id;
  const state = element("project-state");
  state.textContent = project.state;
  state.dataset.state = project.state;
  state.title = project.detail ?? "";
  const running = project.state === "running";
  element("start-button").hidden = running;
  element("stop-button").hidden = !running;
  element("delete-button").hidden = project.role !== "owner";
  element("share-form").hidden = project.role !== "owner";
  files.running(running);
  terminal.running(running);
  element("people").replaceChildren(
    ...project.collaborators.map((person) => {
      const item = listItem(person.email, person.role);
      const own = person.account_id === client.session.account_id;
      if (person.role !== "owner" && (own || project.role === "owner")) {
        const button = document.createElement("button");
        button.textContent = own ? "Leave" : "Remove";
        button.setAttribute("aria-label", `${button.textContent} ${person.email}`);
        button.addEventListener("click", () => void unshare(person.account_id));
        item.append(button);
      }
      return item;
    }),
  );
}

/** @param {string} accountId */
async function unshare(accountId) {
  await guard("share-error", () =>
    client.callHub("unshare_project", { project_id: selected, account_id: accountId }),
  );
  await refresh();
}

/** @param {string} name @param {string} text */
function span(name, text) {
  const made = document.createElement("span");
  made.className = name;
  made.textContent = text;
  return made;
}

/** @param {string} form @param {string} error @param {() => Promise<unknown>} action */
function onSubmit(form, error, action) {
  element(form).addEventListener("submit", (event) => {
    event.preventDefault();
    void guard(error, action, form);
  });
}

/** @param {string} button @param {string} error @param {() => Promise<unknown>} action */
function onClick(button, error, action) {
  element(button).addEventListener("click", () => void guard(error, action, button));
}

/** @param {string} method @param {Record<string, unknown>} [more] */
async function change(method, more = {}) {
  await client.callHub(method, { project_id: selected, ...more }, { timeout: 40_000 });
  await refresh();
}

onSubmit("sign-in-form", "sign-in-error", async () => {
  const password = element("password", HTMLInputElement);
  const current = await signIn(element("email", HTMLInputElement).value, password.value);
  element("current-password", HTMLInputElement).value = current.must_change_password ? password.value : "";
  password.value = "";
  await enter(current);
});

onSubmit("new-password-form", "new-password-error", async () => {
  const [old, chosen] = ["current-password", "chosen-password"].map((id) => element(id, HTMLInputElement));
  await askOverHttp("change_password", { current_password: old.value, new_password: chosen.value });
  const current = await session();
  if (!current) throw new NatskitError("signed_out", "the session has ended: sign in again");
  old.value = chosen.value = "";
  await enter(current);
});

onClick("sign-out", "projects-error", async () => {
  await client.close();
  await signOut();
  leave("");
});

onSubmit("create-form", "projects-error", async () => {
  const title = element("create-title", HTMLInputElement);
  const project = await client.callHub("create_project", { title: title.value.trim() });
  title.value = "";
  await refresh();
  select(project.project_id);
});

onSubmit("rename-form", "project-error", async () => {
  const title = element("project-title", HTMLInputElement);
  title.blur();
  await change("rename_project", { title: title.value.trim() });
});
element("project-title").addEventListener("input", () => (element("rename-button").hidden = false));
onClick("start-button", "project-error", () => change("start_project"));
onClick("stop-button", "project-error", () => change("stop_project"));
onSubmit("share-form", "share-error", async () => {
  const email = element("share-email", HTMLInputElement);
  await change("share_project", { email: email.value.trim() });
  email.value = "";
});

const dialog = element("delete-dialog", HTMLDialogElement);
element("delete-button").addEventListener("click", () => dialog.showModal());
dialog.addEventListener("close", () => {
  if (dialog.returnValue === "delete") void guard("project-error", () => change("delete_project"), "delete-button");
  dialog.returnValue = "";
});

/** @param {number} count @param {number} size */
async function benchmark(count, size) {
  const bar = element("bench-progress", HTMLProgressElement);
  bar.max = count;
  bar.hidden = false;
  try {
    const payload = new Uint8Array(size).fill(120);
    return await client.publishMany(`projects.${selected}.b`, payload, count, (sent) => (bar.value = sent));
  } finally {
    bar.hidden = true;
  }
}

onClick("bench-button", "projects-error", async () => {
  element("bench-result").textContent = "";
  const { seconds } = await benchmark(MESSAGES, 5);
  const rate = Math.round(MESSAGES / seconds).toLocaleString("en");
  element("bench-result").textContent = `${rate} messages/s (${seconds.toFixed(2)} s)`;
});

void start();
