/** The files of the selected project: its tree, and what a person can do with the files and folders in it. */

import { NatskitError } from "@natskit/client";
import { chosen, dropped } from "./dropped.js";
import { ask, element, typedOver, visible } from "./page.js";
import { kindOf, show } from "./preview.js";
import { Trash } from "./trash.js";
import { Tree } from "./tree.js";
import { Uploads } from "./uploads.js";

/** @typedef {import("@natskit/client").Client} Client */
/** @typedef {import("@natskit/client").DirectoryPage} Page */
/** @typedef {import("@natskit/client").FolderWatch} FolderWatch */
/** @typedef {import("@natskit/client").ProjectResults} Results */
/** @typedef {import("./dropped.js").Dropped} Dropped */

/** How many open folders are watched; the others show changes after "Refresh". */
const MOST_WATCHED = 30;
/** The kind of what is dragged within the tree. */
const PATH = "application/x-natskit-path";
/** Moving whole folders to the trash, and removing them, may take this long, in milliseconds. */
const LONG = 600_000;
/** How many taken names the question about them shows. */
const MOST_NAMED = 5;
/** How many names are looked for at a time. */
const ASKED_AT_ONCE = 32;

export class Folder {
  #client;
  #project;
  #open;
  #moved;
  #together;
  #tree;
  #uploads;
  #trash;
  #watches = /** @type {Map<string, FolderWatch>} */ (new Map());
  #running = false;

  /**
   * @param {() => Client} client
   * @param {() => {project_id: string, title: string} | undefined} project the selected one
   * @param {(path: string) => void} open opens a file in the editor
   * @param {(from: string, to: string) => void} moved is called when a file or a folder has another path
   * @param {(path: string) => void} together opens the document of a file
   */
  constructor(client, project, open, moved, together) {
    this.#client = client;
    this.#project = project;
    this.#open = open;
    this.#moved = moved;
    this.#together = together;
    this.#tree = new Tree(element("files"), {
      page: (path, after, limit) => this.#page(path, after, limit),
      stat: (path) => this.#call("stat", { path }),
      open: (path) => this.#show(path),
      act: (key) => void (key === "rename" ? this.#rename() : this.#throwAway()),
      failed: (error) => this.#fail(error),
      selected: () => this.#draw(),
      watch: (path, isOpen) => this.#watch(path, isOpen),
    });
    this.#uploads = new Uploads(client, (project_id, folder) => {
      if (project_id === this.#project()?.project_id) void this.#tree.changed(folder, null).catch(this.#fail);
    });
    this.#trash = new Trash(
      (method, params) => this.#call(method, params, LONG),
      (path) => void this.#changed(path),
    );
    this.#listen();
  }

  /** Empty the list, and show a hint. @param {string} [hint] */
  clear(hint = "") {
    for (const watch of this.#watches.values()) watch.leave();
    this.#watches.clear();
    this.#running = false;
    this.#tree.clear(hint);
    element("folder-error").textContent = "";
    this.#uploads.draw();
  }

  /** Another project is selected, or none. */
  reset() {
    this.clear();
    for (const id of ["trash-dialog", "move-dialog", "preview-dialog", "taken-dialog"]) {
      element(id, HTMLDialogElement).close();
    }
  }

  /** List the home, and what is open below it. */
  async list() {
    this.#running = true;
    await this.#guard(() => this.#tree.load(this.#tree.home));
    this.#draw();
  }

  /** End the uploads of projects that can no longer be used. @param {Set<string>} projects the others */
  keep(projects) {
    this.#uploads.keep(projects);
  }

  /** The state of the connection has changed. */
  connection() {
    this.#uploads.draw();
  }

  #listen() {
    const click = (/** @type {string} */ id, /** @type {() => unknown} */ action) =>
      element(id).addEventListener("click", () => void action());
    click("refresh-files", () => this.#refresh());
    click("upload-files", () => element("files-input").click());
    click("upload-folder", () => element("folder-input").click());
    click("new-folder", () => this.#makeFolder());
    click("rename-file", () => this.#rename());
    click("move-file", () => this.#askWhere());
    click("download-file", () => this.#download());
    click("edit-together", () => {
      const { selected } = this.#tree;
      if (selected) this.#together(selected.path);
    });
    click("trash-file", () => this.#throwAway());
    click("open-trash", () => this.#trash.open());
    click("preview-close", () => element("preview-dialog", HTMLDialogElement).close());
    for (const id of ["files-input", "folder-input"]) {
      const input = element(id, HTMLInputElement);
      input.addEventListener("change", () => {
        if (input.files?.length) void this.#upload(this.#tree.folder.path, Promise.resolve(chosen(input.files)));
        input.value = "";
      });
    }
    this.#listenToDrops(element("listing"));
  }

  /** @param {HTMLElement} area */
  #listenToDrops(area) {
    area.addEventListener("dragstart", (event) => {
      const row = this.#tree.rowOf(event.target);
      if (row) event.dataTransfer?.setData(PATH, row.path);
    });
    area.addEventListener("dragover", (event) => {
      const types = event.dataTransfer?.types ?? [];
      if (!this.#running || !(types.includes("Files") || types.includes(PATH))) return;
      event.preventDefault();
      this.#mark(this.#target(event));
    });
    area.addEventListener("dragleave", (event) => {
      if (!area.contains(/** @type {Node | null} */ (event.relatedTarget))) this.#mark(undefined);
    });
    area.addEventListener("drop", (event) => {
      if (!this.#running || !event.dataTransfer) return;
      event.preventDefault();
      this.#mark(undefined);
      const folder = this.#target(event).path;
      const from = event.dataTransfer.getData(PATH);
      if (from) void this.#move(from, join(folder, from.split("/").at(-1) ?? from));
      else void this.#upload(folder, dropped(event.dataTransfer));
    });
    // What misses the list would replace the page.
    for (const type of ["dragover", "drop"]) {
      addEventListener(type, (event) => {
        const { dataTransfer } = /** @type {DragEvent} */ (event);
        if (event.defaultPrevented || !dataTransfer?.types.includes("Files")) return;
        event.preventDefault();
        dataTransfer.dropEffect = "none";
      });
    }
  }

  /** The folder that something is dropped into. @param {DragEvent} event */
  #target(event) {
    return this.#tree.rowOf(event.target)?.folder ?? this.#tree.home;
  }

  /** Show where something would be dropped. @param {import("./tree.js").Row | undefined} row */
  #mark(row) {
    for (const old of document.querySelectorAll(".drop-here")) old.classList.remove("drop-here");
    (row?.parent ? row.button : row && element("listing"))?.classList.add("drop-here");
  }

  /** @param {string} path */
  #show(path) {
    const kind = kindOf(path);
    if (kind) show(kind, this.#files(), path);
    else this.#open(path);
  }

  /** @param {string} folder @param {Promise<Dropped>} content */
  async #upload(folder, content) {
    const project = this.#project();
    if (!project) return;
    await this.#guard(async () => {
      const found = await content;
      const wanted = await this.#withoutTaken(project.project_id, folder, found);
      if (wanted.files.length + wanted.folders.length) this.#uploads.add(project, folder, wanted);
    });
  }

  /**
   * What of it to upload, after a question if names are taken.
   * @param {string} project @param {string} folder @param {Dropped} content
   */
  async #withoutTaken(project, folder, content) {
    const all = [...content.files.map(({ path }) => path), ...content.folders].map((path) => path.split("/")[0]);
    const names = [...new Set(all)];
    const taken = /** @type {string[]} */ ([]);
    for (let at = 0; at < names.length; at += ASKED_AT_ONCE) {
      const part = names.slice(at, at + ASKED_AT_ONCE);
      const there = await Promise.all(part.map((name) => this.#exists(join(folder, name), project)));
      taken.push(...part.filter((_, number) => there[number]));
    }
    if (taken.length === 0) return content;
    const more = taken.length > MOST_NAMED ? ` and ${taken.length - MOST_NAMED} more` : "";
    element("taken-names").textContent = taken.slice(0, MOST_NAMED).map(visible).join(", ") + more;
    element("taken-folder").textContent = folder === "." ? "the home" : visible(folder);
    const answer = await ask("taken-dialog");
    if (answer === "replace") return content;
    if (answer !== "skip") return { files: [], folders: [] };
    const isFree = (/** @type {string} */ path) => !taken.includes(path.split("/")[0]);
    return { files: content.files.filter(({ path }) => isFree(path)), folders: content.folders.filter(isFree) };
  }

  /** @param {string} path @param {string} [project] the selected one, if none is given */
  async #exists(path, project = this.#project()?.project_id ?? "") {
    try {
      await this.#client().callProject(project, "stat", { path });
      return true;
    } catch (error) {
      if (error instanceof NatskitError && error.kind === "not_found") return false;
      throw error;
    }
  }

  async #makeFolder() {
    await this.#guard(async () => {
      const row = this.#tree.folder;
      if (!row.isOpen) await this.#tree.load(row);
      const name = await this.#tree.askName(row, "", "Name of the new folder");
      if (!name) return;
      checkName(name);
      const path = join(row.path, name);
      const project = this.#project()?.project_id;
      const exists = await this.#exists(path);
      if (project !== this.#project()?.project_id) return; // another one was selected meanwhile
      if (exists) throw new NatskitError("conflict", `${visible(path)} exists already`);
      await this.#call("make_directory", { path });
      await this.#changed(path);
    });
  }

  async #rename() {
    const row = this.#tree.selected;
    if (!row?.parent) return;
    await this.#guard(async () => {
      const name = await this.#tree.askName(row, row.entry.name, "New name");
      if (!name) return;
      checkName(name);
      await this.#move(row.path, join(row.parent?.path ?? ".", name));
    });
  }

  async #askWhere() {
    const row = this.#tree.selected;
    if (!row?.parent) return;
    const field = element("move-to", HTMLInputElement);
    const from = row.path;
    element("move-name").textContent = visible(from);
    field.value = visible(from);
    if ((await ask("move-dialog")) !== "move" || field.value === visible(from)) return;
    await this.#move(from, typedOver(field.value, from).replace(/^~\//, ""));
  }

  /** @param {string} from @param {string} to */
  async #move(from, to) {
    if (from === to) return;
    const project = this.#project()?.project_id;
    await this.#guard(async () => {
      const target = await this.#isFolder(to);
      if (project !== this.#project()?.project_id) return; // another one was selected meanwhile
      const path = target && !`${to}/`.startsWith(`${from}/`) ? join(to, from.split("/").at(-1) ?? from) : to;
      await this.#call("move", { path: from, to: path });
      if (project !== this.#project()?.project_id) return;
      this.#moved(from, path);
      await this.#tree.changed(above(from), null);
      await this.#changed(path);
    });
  }

  /** @param {string} path */
  async #isFolder(path) {
    try {
      return (await this.#call("stat", { path })).type === "directory";
    } catch (error) {
      if (error instanceof NatskitError && error.kind === "not_found") return false;
      throw error;
    }
  }

  async #throwAway() {
    const row = this.#tree.selected;
    if (!row?.parent) return;
    await this.#guard(async () => {
      const path = row.path;
      await this.#call("move_to_trash", { path });
      await this.#tree.changed(above(path), [row.entry.name]);
      element("folder-status").textContent = `${visible(path)} is in the trash.`;
    });
  }

  /** A file as it is; a folder as a zip. The browser saves it piece by piece. */
  #download() {
    const link = document.createElement("a");
    link.href = this.#files().address((this.#tree.selected ?? this.#tree.home).path);
    link.download = "";
    link.click();
  }

  async #refresh() {
    await this.#guard(async () => {
      const refresh = async (/** @type {import("./tree.js").Row} */ row) => {
        await this.#tree.load(row);
        for (const child of row.children) if (child.isOpen) await refresh(child);
      };
      await refresh(this.#tree.home);
    });
  }

  /** Show what is new at a path, and go there. @param {string} path */
  async #changed(path) {
    await this.#tree.changed(above(path), null);
    const row = this.#tree.find(path);
    if (row) this.#tree.focus(row);
  }

  /** @param {string} path @param {boolean} isOpen */
  #watch(path, isOpen) {
    this.#watches.get(path)?.leave();
    this.#watches.delete(path);
    if (!isOpen || this.#watches.size >= MOST_WATCHED) return;
    // The first call of a watch is to list the folder, which has been done; no change is missed in between, because a
    // list that is older than the watch is listed again.
    const changed = (/** @type {string[] | null} */ names) => void this.#tree.changed(path, names).catch(this.#fail);
    const ended = (/** @type {NatskitError} */ error) => {
      if (this.#watches.get(path) !== watch) return;
      this.#watches.delete(path);
      if (error.kind === "not_found") void this.#tree.changed(above(path), null).catch(this.#fail);
    };
    const watch = this.#files().watch(path, changed, ended);
    this.#watches.set(path, watch);
  }

  #files() {
    return this.#client().files(this.#project()?.project_id ?? "");
  }

  /**
   * @template {keyof Results} M
   * @param {M} method @param {Record<string, unknown>} params @param {number} [timeout]
   * @returns {Promise<Results[M]>}
   */
  async #call(method, params, timeout) {
    const options = timeout === undefined ? {} : { timeout };
    return await this.#client().callProject(this.#project()?.project_id ?? "", method, params, options);
  }

  /** @param {string} path @param {string} after @param {number} limit @returns {Promise<Page>} */
  async #page(path, after, limit) {
    try {
      return await this.#call("list_directory_page", { path, after, limit });
    } catch (error) {
      if (!(error instanceof NatskitError && error.kind === "method_not_found")) throw error;
      // An agent of an earlier version, which runs until the project is stopped.
      return { entries: await this.#call("list_directory", { path }), next: null };
    }
  }

  /** @param {() => Promise<void>} action */
  async #guard(action) {
    const project = this.#project();
    element("folder-status").textContent = "";
    try {
      await action();
      element("folder-error").textContent = "";
    } catch (error) {
      if (project === this.#project()) this.#fail(error);
    }
  }

  #fail = (/** @type {unknown} */ error) => {
    element("folder-error").textContent = error instanceof Error ? error.message : String(error);
  };

  #draw() {
    const { selected, folder } = this.#tree;
    const path = folder.path;
    element("directory").textContent = path === "." ? "~" : `~/${visible(path)}`;
    for (const id of ["upload-files", "upload-folder", "new-folder", "download-file", "open-trash"]) {
      element(id, HTMLButtonElement).disabled = !this.#running;
    }
    for (const id of ["rename-file", "move-file", "trash-file"]) {
      element(id, HTMLButtonElement).disabled = !this.#running || selected === undefined;
    }
    const isZip = selected === undefined || selected.folder === selected;
    element("edit-together", HTMLButtonElement).disabled = !this.#running || isZip;
    element("download-file").textContent = isZip ? "Download as zip" : "Download";
  }
}

/** @param {string} folder @param {string} name */
function join(folder, name) {
  return folder === "." ? name : `${folder}/${name}`;
}

/** The folder that a path is in. @param {string} path */
function above(path) {
  return path.split("/").slice(0, -1).join("/") || ".";
}

/** @param {string} name */
function checkName(name) {
  if (name.includes("/") || name === "." || name === "..") {
    throw new NatskitError("invalid_params", `${visible(name)} is no name: it must not contain a slash`);
  }
}
