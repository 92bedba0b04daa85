/**
 * The console page. It talks to the platform through @natskit/client only. It inserts foreign text as text, never as
 * HTML.
 */

import { askOverHttp, connect, NatskitError, session, signIn, signInOptions } from "@natskit/client";
import { Documents } from "./documents.js";
import { Files } from "./files.js";
import { element, guard, listItem, show } from "./page.js";
import { Platform } from "./platform.js";
import { Sessions } from "./sessions.js";
import { Terminal } from "./terminal.js";
import { Terminals } from "./terminals.js";

/** @typedef {import("@natskit/client").Project} Project */

const MESSAGES = 1_000_000;
const ROUND_TRIP_EVERY = 2_000;

/** @type {import("@natskit/client").Client} */
let client;
/** @type {Project[]} */
let projects = [];
let selected = "";
/** @type {import("@natskit/client").Session} */
let entered;
let stopListening = () => {};
/** @type {ReturnType<typeof setInterval> | undefined} */
let roundTrips;

const terminal = new Terminal(
  () => client,
  () => selected,
  draw,
);
const terminals = new Terminals(
  () => client,
  () => selected,
);
const files = new Files(
  () => client,
  () => find(selected),
  (draft) => void restoreDraft(draft),
  (path) => void documents.openPath(path),
);
const documents = new Documents(
  () => client,
  () => find(selected),
  () => files.listDrafts(),
);
const sessions = new Sessions(() => client);
const platform = new Platform(() => client);

async function start() {
  const asked = signInOptions().catch(() => ({ oidc: null, url: location.origin }));
  let current;
  try {
    current = await session();
  } catch (error) {
    element("sign-in-error").textContent = error instanceof Error ? error.message : String(error);
  }
  const { oidc, url } = await asked;
  if (url && url !== location.origin) return sayAddress(url);
  if (current) await enter(current);
  else show("sign-in");
  if (!oidc) return;
  const link = element("oidc", HTMLAnchorElement);
  link.textContent = `Sign in with ${oidc.label}`;
  link.href = new URL(oidc.path, location.origin).pathname;
  link.hidden = false;
}

/** The page was loaded from an address at which signing in does not work. @param {string} url the site's own address */
function sayAddress(url) {
  const link = document.createElement("a");
  link.href = new URL(url).href;
  link.textContent = url;
  show("sign-in");
  element("sign-in-error").replaceChildren(
    "You cannot sign in at ",
    location.origin,
    ". Open the site at its own address: ",
    link,
  );
}

/** @param {import("@natskit/client").Session} current */
async function enter(current) {
  entered = current;
  if (current.must_change_password) {
    show("new-password");
    return;
  }
  show("console");
  element("who").textContent = current.email;
  files.signedIn(current.account_id);
  client = await connect(current, status);
  stopListening = client.subscribe(`events.account.${current.account_id}.>`, () => void refresh());
  client.onReturn(() => {
    void refresh();
    void documents.sendKept();
  });
  roundTrips = setInterval(() => void measure(), ROUND_TRIP_EVERY);
  void measure();
  void platform.signedIn();
  await refresh();
  terminal.resume();
  void documents.sendKept();
  const draft = files.newestDraft();
  if (draft && find(draft.project)) await restoreDraft(draft);
}

/** @param {import("@natskit/client").State} state @param {string} reason */
function status(state, reason) {
  if (state === "signed-out") {
    leave(
      `You were signed out: ${reason}. ${files.hasDraft() ? "Your unsaved text will be here when you sign in again." : ""}`,
    );
    return;
  }
  const pill = element("connection");
  pill.dataset.state = state;
  pill.title = reason;
  element("connection-state").textContent = state;
  terminals.connection();
  files.connection();
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
  platform.signedOut();
  files.signedOut();
  projects = [];
  terminal.keep(new Set());
  terminals.keep(new Set());
  files.keep(new Set());
  select("");
  show("sign-in");
  element("sign-in-error").textContent = message;
}

async function refresh() {
  await guard("projects-error", async () => {
    const found = await client.listProjects();
    found.sort((a, b) => a.title.localeCompare(b.title));
    if (selected && !found.some((project) => project.project_id === selected)) {
      files.putAside();
      selected = "";
    }
    projects = found;
    const ids = new Set(projects.map((project) => project.project_id));
    terminal.keep(ids);
    terminals.keep(ids);
    files.keep(ids);
    draw();
  });
}

/** @param {string} projectId */
function find(projectId) {
  return projects.find((project) => project.project_id === projectId);
}

/** Select another project, after asking about unsaved changes in this one. @param {string} projectId */
async function choose(projectId) {
  if (projectId === selected || (await files.mayLeave())) select(projectId);
}

/** Open an unsaved text again. @param {import("./drafts.js").Draft} draft */
async function restoreDraft(draft) {
  if (!find(draft.project)) return await files.showDraft(draft);
  if (!(await files.mayLeave())) return;
  select(draft.project);
  files.restore(draft);
}

/** @param {string} projectId */
function select(projectId) {
  if (projectId !== selected) {
    selected = projectId;
    terminal.show();
    terminals.show();
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
      if (terminal.isBusy(project.project_id)) button.append(span("role", "running a command"));
      button.addEventListener("click", () => void choose(project.project_id));
      item.append(button);
      return item;
    }),
  );
  element("no-projects").hidden = projects.length > 0;
  const project = find(selected);
  element("nothing").hidden = project !== undefined;
  element("project").hidden = project === undefined;
  element("bench-button", HTMLButtonElement).disabled = project === undefined;
  if (project) drawProject(project);
  documents.show();
  files.listDrafts();
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
  terminals.people(project.collaborators);
  terminals.running(running);
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
  await guard("share-error", () => client.callHub("unshare_project", { project_id: selected, account_id: accountId }));
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
  const passwords = { current_password: old.value, new_password: chosen.value };
  let current;
  try {
    await askOverHttp("change_password", passwords, entered.account_id);
    current = await session(entered.account_id);
  } catch (error) {
    if (!(error instanceof NatskitError) || error.kind !== "other_account") throw error;
    return leave(`You were signed out: ${error.message}.`);
  }
  if (!current) throw new NatskitError("signed_out", "the session has ended: sign in again");
  old.value = chosen.value = "";
  await enter(current);
});

onClick("sign-out", "projects-error", async () => {
  if (!(await files.mayLeave())) return;
  await documents.close();
  await client.signOut();
  leave("");
});

onSubmit("create-form", "projects-error", async () => {
  const title = element("create-title", HTMLInputElement);
  const project = await client.callHub("create_project", { title: title.value.trim() });
  title.value = "";
  await refresh();
  await choose(project.project_id);
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
