/**
 * The file editor: open, edit and save. It never overwrites another person's changes without asking, changes nothing but
 * the edited lines, and never loses unsaved text without asking.
 */

import { NatskitError } from "@natskit/client";
import * as drafts from "./drafts.js";
import { Folder } from "./folder.js";
import { restore, shown } from "./line-endings.js";
import { ask, element, listItem, visible } from "./page.js";

const KEEP_EVERY = 300;

/**
 * What is in the editor.
 * @typedef {object} OpenFile
 * @property {string} project
 * @property {string} title of the project
 * @property {string} path empty if the text has no file yet
 * @property {string} version which version of the file saving may replace
 * @property {string} text of the file, with its line endings
 * @property {string | null} saved what the editor showed when file and text were the same; `null` if they never were
 * @property {{path: string, text: string} | null} unanswered a save without an answer: it may have happened or not
 */

export class Files {
  #client;
  #project;
  #take;
  #folder;
  #account = "";
  #running = false;
  #file = nothing();
  /** The text that the person chose to discard. @type {string | null} */
  #given = null;
  /** Counts the files opened, so that only the answer to the last click is shown. */
  #turn = 0;
  /** @type {Promise<boolean> | undefined} */
  #saving;
  #again = false;
  /** @type {{path: string, version: string} | null} */
  #conflict = null;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #keeping;

  /**
   * @param {() => import("@natskit/client").Client} client
   * @param {() => {project_id: string, title: string} | undefined} project the selected one
   * @param {(draft: drafts.Draft) => void} take called with the draft that the person chose
   * @param {(path: string) => void} together opens the document of a file
   */
  constructor(client, project, take, together) {
    this.#client = client;
    this.#project = project;
    this.#take = take;
    this.#folder = new Folder(
      client,
      project,
      (path) => void this.open(path),
      (from, to) => this.#moved(from, to),
      together,
    );
    const path = element("file-path", HTMLInputElement);
    element("open-button").addEventListener("click", () => void this.open(this.#chosen()));
    path.addEventListener("keydown", (event) => {
      if (event.key === "Enter") {
        event.preventDefault();
        void this.open(this.#chosen());
      }
    });
    element("file-form").addEventListener("submit", (event) => {
      event.preventDefault();
      void this.save();
    });
    element("overwrite-button").addEventListener("click", () => void this.#overwrite());
    const text = element("file-text", HTMLTextAreaElement);
    text.addEventListener("keydown", (event) => {
      if (event.key === "s" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        void this.save();
      }
    });
    for (const field of [path, text]) field.addEventListener("input", () => this.#keepSoon());
    addEventListener("pagehide", () => this.#keep());
    addEventListener("beforeunload", (event) => {
      this.#keep();
      if (this.#isChanged() || drafts.any()) event.preventDefault();
    });
  }

  /** Whether the signed-in account has unsaved text. @returns {boolean} */
  hasDraft() {
    this.#keep();
    return this.newestDraft() !== undefined;
  }

  /** Show the drafts of this account from now on. @param {string} account */
  signedIn(account) {
    this.#account = account;
  }

  /** Keep unsaved text for this account, and hide it. */
  signedOut() {
    this.putAside();
    this.#account = "";
    element("drafts").replaceChildren();
    element("drafts-section").hidden = true;
    for (const id of ["unsaved-dialog", "draft-dialog"]) element(id, HTMLDialogElement).close();
    element("draft-text", HTMLTextAreaElement).value = "";
  }

  /** Close the file, for another project. */
  clear() {
    this.#show(nothing());
    this.#folder.reset();
    this.#running = false;
  }

  /** Close the file without asking. Its unsaved text goes to the list of drafts. */
  putAside() {
    this.#keep();
    this.clear();
  }

  /** End the uploads of projects that can no longer be used. @param {Set<string>} projects the others */
  keep(projects) {
    this.#folder.keep(projects);
  }

  /** The state of the connection has changed. */
  connection() {
    this.#folder.connection();
  }

  /** The open file, or a folder above it, has another path. @param {string} from @param {string} to */
  #moved(from, to) {
    const { path } = this.#file;
    if (path !== from && !path.startsWith(`${from}/`)) return;
    const field = this.#field() === visible(path);
    this.#keep();
    drafts.drop(this.#draft());
    this.#file.path = to + path.slice(from.length);
    if (field) element("file-path", HTMLInputElement).value = visible(this.#file.path);
    this.#keep();
  }

  /** @param {boolean} running whether the project runs */
  running(running) {
    if (running && !this.#running) void this.#folder.list();
    if (!running) this.#folder.clear("Start the project to see its files.");
    this.#running = running;
    for (const id of ["refresh-files", "open-button", "save-button", "overwrite-button"]) {
      element(id, HTMLButtonElement).disabled = !running;
      element(id).title = running ? "" : "Start the project first";
    }
  }

  /** Ask what to do with unsaved text. @returns {Promise<boolean>} whether another text may replace it */
  async mayLeave() {
    await this.#saving;
    if (!this.#isChanged()) return true;
    const [file, text] = [this.#file, this.#text()];
    element("unsaved-name").textContent = visible(this.#chosen()) || "this text";
    const answer = await ask("unsaved-dialog");
    if (this.#file !== file || this.#text() !== text) return false; // meanwhile, the project was deleted, for example
    if (answer === "save") return (await this.save()) && !this.#isChanged();
    if (answer !== "discard") return false;
    this.#given = text;
    clearTimeout(this.#keeping);
    drafts.drop(this.#draft());
    return true;
  }

  /** @param {string} path */
  async open(path) {
    if (!path) return;
    if (!(await this.mayLeave())) return;
    const turn = ++this.#turn;
    const project = this.#project();
    if (!project) return;
    this.#say(`Opening ${visible(path)} …`);
    try {
      const { text, version } = await this.#call(project.project_id, "read_text_file", { path });
      if (turn !== this.#turn) return;
      if (this.#isChanged() && this.#text() !== this.#given) {
        this.#say("", `${visible(path)} was not opened: you have made changes meanwhile. Save them first.`);
        return;
      }
      drafts.drop(this.#draft());
      const { project_id, title } = project;
      this.#show({ project: project_id, title, path, version, text, saved: shown(text), unanswered: null });
      this.#say(`Opened ${visible(path)}`);
    } catch (error) {
      if (turn === this.#turn) this.#say("", explain(error));
    }
  }

  /** Show unsaved text again. @param {drafts.Draft} draft of the selected project */
  restore({ account, project, title, path, typed, version, text, copy }) {
    this.#show({ project, title, path, version, text, saved: null, unanswered: null });
    if (copy) {
      // The text of a document is a file from now on.
      drafts.drop({ account, project, path, copy });
      this.#keep();
    }
    if (typed) element("file-path", HTMLInputElement).value = typed;
    this.#say(`Restored your unsaved ${path ? `changes to ${visible(path)}` : "text"}.`);
    this.listDrafts();
  }

  /** List the drafts that are not in the editor. */
  listDrafts() {
    const own = this.#draft();
    const others = drafts
      .draftsOf(this.#account)
      .filter(({ project, path, copy }) => copy || project !== own.project || path !== own.path || !this.#isChanged());
    element("drafts-section").hidden = others.length === 0;
    element("drafts").replaceChildren(
      ...others.map((draft) => {
        const item = listItem("", draft.title);
        const button = document.createElement("button");
        button.type = "button";
        button.textContent = visible(draft.path || draft.typed) || "untitled text";
        button.addEventListener("click", () => this.#take(draft));
        item.prepend(button);
        return item;
      }),
    );
  }

  /** The newest draft. @returns {drafts.Draft | undefined} */
  newestDraft() {
    return drafts.draftsOf(this.#account)[0];
  }

  /** Show a draft whose project the account can no longer use. @param {drafts.Draft} draft */
  async showDraft(draft) {
    element("draft-name").textContent = `${visible(draft.path || draft.typed) || "A text"} in ${draft.title}`;
    element("draft-text", HTMLTextAreaElement).value = draft.text;
    const answer = await ask("draft-dialog");
    element("draft-text", HTMLTextAreaElement).value = "";
    if (answer === "discard") drafts.drop(draft);
    this.listDrafts();
  }

  /**
   * Save, and save again what is typed meanwhile: one save after the other, since each names the version that it
   * replaces. @returns {Promise<boolean>} whether everything is saved
   */
  save() {
    this.#again = this.#saving !== undefined;
    this.#saving ??= this.#saveAll().finally(() => (this.#saving = undefined));
    return this.#saving;
  }

  async #saveAll() {
    do {
      this.#again = false;
      if (!(await this.#saveOnce())) return false;
    } while (this.#again && this.#isChanged());
    return true;
  }

  /** @param {string} [expected] the version to overwrite, if the person chose that after a conflict */
  async #saveOnce(expected) {
    const [file, text, path, field] = [this.#file, this.#text(), this.#chosen(), this.#field()];
    const project = file.project || this.#project()?.project_id;
    if (!path || !project) {
      this.#say("", "Type a path above to save the text.");
      return false;
    }
    this.#say(`Saving ${visible(path)} …`);
    const isNew = path !== file.path;
    const content = restore(file.text, text);
    const draft = { account: this.#account, project, path: file.path };
    try {
      const version = await this.#write(project, file, path, content, expected ?? (isNew ? "absent" : file.version));
      Object.assign(file, { project, path, version, text: content, saved: text, unanswered: null });
      drafts.drop(draft, content);
      if (this.#file !== file) return true; // the project was left meanwhile
      if (this.#field() === field) element("file-path", HTMLInputElement).value = visible(path);
      this.#keep(); // what was typed since, under its new path
      this.#say(
        this.#isChanged() ? `Saved ${visible(path)}, but not the changes you made since.` : `Saved ${visible(path)}`,
      );
      if (isNew) void this.#folder.list();
      return true;
    } catch (error) {
      if (this.#file !== file) return false;
      this.#say("", explain(error, visible(path), isNew));
      if (isConflict(error)) this.#offerToOverwrite(path, String(error.data.actual_version));
      return false;
    }
  }

  /**
   * @param {string} project
   * @param {OpenFile} file
   * @param {string} path
   * @param {string} text
   * @param {string} expected_version
   */
  async #write(project, file, path, text, expected_version) {
    const put = async (/** @type {string} */ expected_version) =>
      (await this.#call(project, "write_text_file", { path, text, expected_version })).version;
    try {
      return await put(expected_version);
    } catch (error) {
      if (isConflict(error) && file.unanswered?.path === path) {
        // An earlier save may have succeeded, and only its answer was lost.
        const now = await this.#call(project, "read_text_file", { path });
        if (now.text === file.unanswered.text) return await put(now.version);
      }
      if (!(error instanceof NatskitError) || ["timeout", "unavailable"].includes(error.kind)) {
        file.unanswered = { path, text };
      }
      throw error;
    }
  }

  /** @param {string} path @param {string} version */
  #offerToOverwrite(path, version) {
    this.#conflict = { path, version };
    element("overwrite-button").hidden = false;
  }

  async #overwrite() {
    const conflict = this.#conflict;
    if (!conflict || this.#saving || conflict.path !== this.#chosen()) return void this.save();
    this.#saving = this.#saveOnce(conflict.version).finally(() => (this.#saving = undefined));
    await this.#saving;
  }

  /** @param {OpenFile} file */
  #show(file) {
    this.#turn++;
    clearTimeout(this.#keeping);
    this.#file = file;
    this.#given = null;
    element("file-path", HTMLInputElement).value = visible(file.path);
    element("file-text", HTMLTextAreaElement).value = shown(file.text);
    this.#say("");
  }

  /** @param {string} status @param {string} [error] */
  #say(status, error = "") {
    element("file-status").textContent = status;
    element("file-error").textContent = error;
    element("overwrite-button").hidden = true;
    this.#conflict = null;
  }

  #keepSoon() {
    clearTimeout(this.#keeping);
    this.#keeping = setTimeout(() => this.#keep(), KEEP_EVERY);
  }

  /** Keep the text in the editor as a draft, unless it is saved or discarded. */
  #keep() {
    clearTimeout(this.#keeping);
    if (!this.#account || this.#text() === this.#given) return;
    const draft = this.#draft();
    if (!this.#isChanged()) {
      drafts.drop(draft);
    } else if (!drafts.keep(draft)) {
      element("file-status").textContent = "This text is too long to survive a reload: save it first.";
    }
    this.listDrafts();
  }

  /** @returns {drafts.Draft} */
  #draft() {
    const { path, version } = this.#file;
    const selected = this.#project();
    const project = this.#file.project || selected?.project_id || "";
    const title = this.#file.title || selected?.title || "";
    const typed = this.#field() === visible(path) ? "" : this.#field();
    const text = restore(this.#file.text, this.#text());
    return { account: this.#account, project, title, path, typed, version, text, at: Date.now() };
  }

  #isChanged() {
    return this.#file.saved === null || this.#text() !== this.#file.saved;
  }

  /** The path in the field. For the open file, the real path: the field shows its invisible characters as pictures. */
  #chosen() {
    const field = this.#field();
    if (field === visible(this.#file.path)) return this.#file.path;
    return field.trim() ? field : "";
  }

  #field() {
    return element("file-path", HTMLInputElement).value;
  }

  #text() {
    return element("file-text", HTMLTextAreaElement).value;
  }

  /**
   * Call a method of a project.
   * @template {keyof import("@natskit/client").ProjectResults} M
   * @param {string} project
   * @param {M} method
   * @param {Record<string, unknown>} params
   * @returns {Promise<import("@natskit/client").ProjectResults[M]>}
   */
  async #call(project, method, params) {
    return await this.#client().callProject(project, method, params);
  }
}

/** @returns {OpenFile} */
function nothing() {
  return { project: "", title: "", path: "", version: "absent", text: "", saved: "", unanswered: null };
}

/** @param {unknown} error @returns {error is NatskitError} */
function isConflict(error) {
  return error instanceof NatskitError && error.kind === "conflict";
}

/** @param {unknown} error @param {string} [path] of the file to be saved @param {boolean} [isNew] @returns {string} */
function explain(error, path = "", isNew = false) {
  if (isConflict(error)) {
    if (isNew) return `${path} exists already: choose another path, open it, or overwrite it.`;
    const what = error.data.actual_version === "absent" ? "removed" : "changed";
    return `${path} was ${what} by somebody else. Your text is not saved: overwrite the file, or save under another path.`;
  }
  return error instanceof Error ? error.message : String(error);
}
