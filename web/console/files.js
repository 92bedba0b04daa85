/** The file editor: list a folder, open, edit and save, and never overwrite what somebody else has saved meanwhile. */

import { NatskitError } from "../src/natskit.js";
import { element, guard, listItem } from "./page.js";

export class Files {
  #client;
  #project;
  #directory = ".";
  #path = "";
  #version = "absent";
  #running = false;

  /** @param {() => import("../src/natskit.js").Client} client @param {() => string} project */
  constructor(client, project) {
    this.#client = client;
    this.#project = project;
    element("refresh-files").addEventListener("click", () => void this.list(this.#directory));
    element("open-button").addEventListener("click", () => void this.open(this.#chosen()));
    element("file-path").addEventListener("keydown", (event) => {
      if (event.key === "Enter") {
        event.preventDefault();
        void this.open(this.#chosen());
      }
    });
    element("file-form").addEventListener("submit", (event) => {
      event.preventDefault();
      void this.save();
    });
    element("file-text").addEventListener("keydown", (event) => {
      if (event.key === "s" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        void this.save();
      }
    });
  }

  /** Forget what was open. */
  clear() {
    this.#directory = ".";
    this.#forget();
    this.#running = false;
    element("files").replaceChildren();
    element("directory").textContent = "";
    element("file-path", HTMLInputElement).value = "";
    element("file-error").textContent = "";
  }

  /** @param {boolean} running whether the project can be asked */
  running(running) {
    if (running && !this.#running) void this.list(this.#directory);
    if (!running) element("files").replaceChildren(listItem("", "Start the project to see its files."));
    this.#running = running;
    for (const id of ["refresh-files", "open-button", "save-button"]) {
      element(id, HTMLButtonElement).disabled = !running;
      element(id).title = running ? "" : "Start the project first";
    }
  }

  /** @param {string} directory */
  async list(directory) {
    await guard("file-error", async () => {
      const entries = await this.#call("list_directory", { path: directory });
      this.#directory = directory;
      element("directory").textContent = directory === "." ? "~" : `~/${directory}`;
      const rows = entries.map((/** @type {{name: string, type: string}} */ entry) => this.#row(entry));
      if (directory !== ".") rows.unshift(this.#row({ name: "..", type: "directory" }));
      element("files").replaceChildren(...rows);
    });
  }

  /** @param {string} path */
  async open(path) {
    if (!path) return;
    await guard("file-error", async () => {
      element("file-status").textContent = "";
      const { text, version } = await this.#call("read_text_file", { path });
      this.#path = path;
      this.#version = version;
      element("file-path", HTMLInputElement).value = path;
      element("file-text", HTMLTextAreaElement).value = text;
      element("file-status").textContent = `Opened ${path}`;
    });
  }

  async save() {
    const path = this.#chosen();
    const status = element("file-status");
    status.textContent = "";
    if (!path) {
      element("file-error").textContent = "Say where to save it: type a path above.";
      return;
    }
    await guard("file-error", async () => {
      try {
        const { version } = await this.#call("write_text_file", {
          path,
          text: element("file-text", HTMLTextAreaElement).value,
          expected_version: path === this.#path ? this.#version : "absent",
        });
        this.#path = path;
        this.#version = version;
        status.textContent = `Saved ${path}`;
        await this.list(this.#directory);
      } catch (error) {
        if (error instanceof NatskitError && error.kind === "conflict") {
          throw new NatskitError(
            "conflict",
            `${path} was changed by somebody else, or exists already. Open it to see what is there (copy your text first).`,
          );
        }
        throw error;
      }
    }, "save-button");
  }

  #forget() {
    this.#path = "";
    this.#version = "absent";
    element("file-text", HTMLTextAreaElement).value = "";
    element("file-status").textContent = "";
  }

  #chosen() {
    return element("file-path", HTMLInputElement).value.trim();
  }

  /** @param {{name: string, type: string}} entry */
  #row({ name, type }) {
    const item = document.createElement("li");
    const button = document.createElement("button");
    button.type = "button";
    button.className = type;
    button.textContent = type === "directory" ? `${name}/` : name;
    const path = join(this.#directory, name);
    button.addEventListener("click", () => void (type === "directory" ? this.list(path) : this.open(path)));
    item.append(button);
    return item;
  }

  /** @param {string} method @param {Record<string, unknown>} params */
  async #call(method, params) {
    return await this.#client().callProject(this.#project(), method, params);
  }
}

/** @param {string} directory @param {string} name */
function join(directory, name) {
  const parts = directory === "." ? [] : directory.split("/");
  if (name === "..") parts.pop();
  else parts.push(name);
  return parts.join("/") || ".";
}
