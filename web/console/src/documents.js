/**
 * The documents of the selected project: a list, and one that is open. What is typed is sent at once; what could not be
 * sent is kept in this browser, and sent when the account signs in again.
 */

import { NatskitError } from "@natskit/client";
import { documentsOf, forgetUnsent, unsentOf } from "@natskit/client/document";
import * as drafts from "./drafts.js";
import { History } from "./history.js";
import { isNotebook, textOf } from "./notebook-text.js";
import { ask, element, guard, typedOver, visible } from "./page.js";
import { DISK, People } from "./people.js";

/** @typedef {import("@natskit/client/document").SharedDocument} SharedDocument */
/** @typedef {import("@natskit/client/document").DocumentState} DocumentState */
/** @typedef {Awaited<ReturnType<typeof import("./editor.js")["openEditor"]>>} Editor */

/** How long the preview may lag behind, in milliseconds. */
const PREVIEW_AFTER = 150;

/** What people read of a document that has no file because of a limit. */
const LEFT_OUT =
  "This document is not kept the same as a file: the project keeps as many as it may (runner_project_documents).";

export class Documents {
  #client;
  #project;
  #drafted;
  #people;
  #history;
  /** Which project's documents are shown, and what ends its subscription. */
  #shown = "";
  #stopListening = () => {};
  /** @type {SharedDocument | undefined} */
  #shared;
  /** @type {Editor | undefined} */
  #editor;
  /** Counts what was opened, so that only the last is shown. */
  #turn = 0;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #previewing;

  /**
   * @param {() => import("@natskit/client").Client} client
   * @param {() => import("@natskit/client").Project | undefined} project the selected one
   * @param {() => void} drafted is called when a text was put among the drafts
   */
  constructor(client, project, drafted) {
    this.#client = client;
    this.#project = project;
    this.#drafted = drafted;
    this.#people = new People(project);
    this.#history = new History(this.#people, () => this.#toggleHistory(false));
    element("new-document-form").addEventListener("submit", (event) => {
      event.preventDefault();
      void guard("documents-error", () => this.#create(), "new-document-form");
    });
    element("document-path-form").addEventListener("submit", (event) => {
      event.preventDefault();
      void guard("document-error", () => this.#rename(), "document-path-form");
    });
    element("document-path").addEventListener("input", () => this.#drawPath());
    element("document-close").addEventListener("click", () => void this.close());
    element("document-delete").addEventListener("click", () => void guard("documents-error", () => this.#delete()));
    element("document-history").addEventListener("click", () => this.#toggleHistory(!isPressed("document-history")));
    element("document-preview").addEventListener("click", () => this.#togglePreview(!isPressed("document-preview")));
  }

  /** The account has signed in, or its connection is back: send what this browser kept for it. */
  async sendKept() {
    const client = this.#client();
    const kept = await unsentOf(client.session.account_id).catch(() => []);
    for (const record of kept) {
      if (record.document === this.#shared?.documentId) continue;
      try {
        const shared = await documentsOf(client, record.project).open({ documentId: record.document });
        await shared.saved().finally(() => shared.close());
      } catch (error) {
        if (error instanceof NatskitError && ["unavailable", "timeout"].includes(error.kind)) return;
        if (!isGone(error)) continue; // it stays in the browser until the next time
        if (!record.text) continue; // the update is all that there is of what was typed
        const copy = `${record.document} ${record.client}`;
        if (this.#draft(record.account, record.project, "", record.path, record.text, copy)) await forgetUnsent(record);
      }
    }
  }

  /** Another project is selected, or none, or its state has changed. */
  show() {
    const project = this.#project()?.project_id ?? "";
    if (project === this.#shown) return;
    this.#shown = project;
    this.#stopListening();
    this.#stopListening = () => {};
    void this.close();
    element("documents").replaceChildren();
    element("documents-error").textContent = "";
    if (!project) return;
    const stop = documentsOf(this.#client(), project).onChanged(() => void this.#list());
    const forget = this.#client().onReturn(() => void this.#list());
    this.#stopListening = () => {
      stop();
      forget();
    };
    void this.#list();
  }

  async #list() {
    const project = this.#shown;
    await guard("documents-error", async () => {
      const entries = await this.#service().list();
      if (project !== this.#shown) return;
      element("documents").replaceChildren(
        ...entries.map(({ document_id, path, left_out }) => {
          const item = document.createElement("li");
          const button = document.createElement("button");
          button.type = "button";
          button.textContent = visible(path);
          button.dataset.documentId = document_id;
          button.setAttribute("aria-current", String(document_id === this.#shared?.documentId));
          button.addEventListener("click", () => void this.#open({ documentId: document_id }));
          item.append(button, ...(left_out ? [note("no file", LEFT_OUT)] : []));
          return item;
        }),
      );
    });
  }

  async #create() {
    const field = element("new-document", HTMLInputElement);
    const path = field.value.trim();
    if (!path) return;
    if (await this.#open({ path, create: true })) field.value = "";
    await this.#list();
  }

  /** Edit a file together with others: open the document at its path, and make it if there is none. @param {string} path */
  async openPath(path) {
    await this.#open({ path, create: true });
    await this.#list();
    element("documents-heading").scrollIntoView();
  }

  /** @param {{path?: string, documentId?: string, create?: boolean}} which */
  async #open(which) {
    const project = this.#project();
    await this.close();
    const turn = ++this.#turn;
    let done = false;
    await guard("documents-error", async () => {
      const service = this.#service();
      const [{ openEditor }, { openNotebook }] = await Promise.all([import("./editor.js"), import("./notebook.js")]);
      const shared = await service.open(which, { identify: (author) => this.#people.identify(author) });
      if (turn !== this.#turn || project?.project_id !== this.#shown) return await shared.close();
      if (shared.text.length !== shared.text.toString().length) {
        await shared.close();
        throw new NatskitError("unsupported", "this document has content that is no text: it cannot be edited here");
      }
      this.#shared = shared;
      element("document").hidden = false;
      const cells = isNotebook(shared.doc, shared.path);
      element("document-text").hidden = cells;
      element("document-cells").hidden = !cells;
      this.#editor = cells
        ? openNotebook(element("document-cells"), shared, `Cells of ${visible(shared.path)}`)
        : openEditor(element("document-text"), shared, `Text of ${visible(shared.path)}`);
      shared.onState((state) => this.#draw(shared, state));
      shared.awareness.on("change", () => this.#drawPeople(shared));
      shared.doc.on("update", () => this.#previewSoon());
      element("document-path", HTMLInputElement).value = visible(shared.path);
      this.#draw(shared, shared.state);
      this.#drawPeople(shared);
      await this.#editor.setPath(shared.path);
      this.#editor.focus();
      done = true;
    });
    this.#mark();
    return done;
  }

  /** Leave the document that is open. */
  async close() {
    this.#turn++;
    const shared = this.#shared;
    this.#history.close();
    this.#editor?.close();
    this.#editor = undefined;
    this.#shared = undefined;
    this.#press("document-history", false);
    this.#togglePreview(false);
    element("document").hidden = true;
    element("document-text").hidden = false;
    element("document-cells").hidden = true;
    element("document-error").textContent = "";
    element("document-file").textContent = "";
    this.#mark();
    await shared?.close();
  }

  /** @param {SharedDocument} shared @param {DocumentState} state */
  #draw(shared, { kind, unsent, error }) {
    if (shared !== this.#shared) return;
    const pill = element("document-state");
    pill.dataset.state = kind;
    pill.textContent = {
      saved: "saved",
      sending: "sending",
      offline: unsent ? `offline: ${unsent} ${unsent === 1 ? "change" : "changes"} not sent` : "offline",
      failed: "not in step",
      closed: "closed",
    }[kind];
    const path = element("document-path", HTMLInputElement);
    if (path.dataset.of !== shared.path && document.activeElement !== path) path.value = visible(shared.path);
    if (path.dataset.of !== shared.path) void this.#editor?.setPath(shared.path);
    path.dataset.of = shared.path;
    this.#drawPath();
    this.#drawFile(shared);
    if (kind !== "failed" || !error) return;
    element("document-error").textContent = error.message;
    this.#editor?.setReadOnly(true);
    if (!unsent) return;
    // The browser keeps what was typed; a person who may open the document no more finds the text among the drafts.
    const { project_id = "", title = "" } = this.#project() ?? {};
    const copy = `${shared.documentId} ${shared.doc.clientID}`;
    const text = shared.text.toString() || textOf(shared.doc);
    this.#draft(this.#client().session.account_id, project_id, title, shared.path, text, copy);
  }

  /**
   * Put the text of a document among the drafts.
   * @param {string} account @param {string} project @param {string} title @param {string} path @param {string} text
   * @param {string} copy which copy of the document: each has a draft of its own
   * @returns {boolean} whether there was room
   */
  #draft(account, project, title, path, text, copy) {
    const kept = drafts.keep({
      account,
      project,
      title,
      path,
      copy,
      typed: "",
      version: "absent",
      text,
      at: Date.now(),
    });
    this.#drafted();
    return kept;
  }

  /** @param {SharedDocument} shared */
  #drawPeople(shared) {
    if (shared !== this.#shared) return;
    const own = this.#client().session.account_id;
    const states = [...shared.awareness.getStates()];
    this.#drawFile(shared);
    const authors = new Set(
      states
        .filter(([, { author }]) => author !== DISK)
        .map(([client, { author }]) => (client === shared.doc.clientID ? own : String(author))),
    );
    element("document-people").replaceChildren(
      ...[...authors].map((author) => {
        const item = document.createElement("li");
        item.className = `author-${this.#people.number(author)}`;
        item.textContent = author === own ? "you" : this.#people.name(author);
        return item;
      }),
    );
  }

  /** Say why the document and its file are not the same. @param {SharedDocument} shared */
  #drawFile(shared) {
    const disk = [...shared.awareness.getStates().values()].find(({ author }) => author === DISK);
    element("document-file").textContent = String(disk?.file?.message ?? (shared.leftOut ? LEFT_OUT : ""));
  }

  #drawPath() {
    const path = this.#shared?.path ?? "";
    element("document-rename").hidden = element("document-path", HTMLInputElement).value === visible(path);
  }

  async #rename() {
    const shared = this.#shared;
    const path = typedOver(element("document-path", HTMLInputElement).value.trim(), shared?.path ?? "");
    if (!shared || !path) return;
    await this.#service().rename(shared.documentId, path);
  }

  async #delete() {
    const shared = this.#shared;
    if (!shared) return;
    element("delete-document-name").textContent = visible(shared.path);
    if ((await ask("delete-document-dialog")) !== "delete" || shared !== this.#shared) return;
    const service = this.#service();
    await this.close();
    await service.delete(shared.documentId);
    await this.#list();
  }

  /** @param {boolean} open */
  #toggleHistory(open) {
    const shared = this.#shared;
    this.#press("document-history", open);
    const cells = element("document-cells").childElementCount > 0;
    element("document-text").hidden = open || cells;
    element("document-cells").hidden = open || !cells;
    if (open && shared) return void this.#history.open(this.#service(), shared);
    this.#history.close();
    this.#editor?.focus();
  }

  /** @param {boolean} open */
  #togglePreview(open) {
    this.#press("document-preview", open);
    element("document-preview-text").hidden = !open;
    element("document-preview-text").replaceChildren();
    if (open) this.#previewSoon();
  }

  #previewSoon() {
    if (element("document-preview-text").hidden) return;
    this.#previewing ??= setTimeout(async () => {
      this.#previewing = undefined;
      const { render } = await import("./markdown.js");
      if (this.#shared) element("document-preview-text").replaceChildren(render(this.#shared.text.toString()));
    }, PREVIEW_AFTER);
  }

  /** @param {string} id @param {boolean} pressed */
  #press(id, pressed) {
    element(id).setAttribute("aria-pressed", String(pressed));
  }

  /** Mark the open one in the list. */
  #mark() {
    for (const button of element("documents").querySelectorAll("button")) {
      button.setAttribute("aria-current", String(button.dataset.documentId === this.#shared?.documentId));
    }
  }

  #service() {
    return documentsOf(this.#client(), this.#shown);
  }
}

/** A note beside a document in the list. @param {string} text @param {string} reason */
function note(text, reason) {
  const made = document.createElement("small");
  made.textContent = ` ${text}`;
  made.title = reason;
  return made;
}

/** @param {string} id */
function isPressed(id) {
  return element(id).getAttribute("aria-pressed") === "true";
}

/** Whether the account can no longer use a document. @param {unknown} error */
function isGone(error) {
  return error instanceof NatskitError && (error.kind === "not_found" || error.kind === "forbidden");
}
