/**
 * Uploads: one after the other, each of any number of files. They go on while another project is looked at, and after a
 * reconnect. No more of a file is in memory than a few parts of it.
 */

import { NatskitError } from "@natskit/client";
import { element, visible } from "./page.js";
import { bytes } from "./tree.js";

/** @typedef {import("@natskit/client").Client} Client */
/** @typedef {import("./dropped.js").Dropped} Dropped */

/** How many refused files are named. */
const MOST_NAMED = 20;

/** What was dropped at once, on its way into a folder of a project. */
class Upload {
  state = /** @type {"waiting" | "running" | "paused" | "over"} */ ("waiting");
  done = 0;
  files = 0;
  error = "";
  refused = /** @type {string[]} */ ([]);
  refusals = 0;
  abort = new AbortController();
  /** Resolves when a paused upload goes on. */
  going = Promise.resolve();
  go = () => {};
  item = document.createElement("li");
  bar = document.createElement("progress");
  said = document.createElement("span");
  pauseButton = button("Pause");
  endButton = button("Cancel");
  problems = document.createElement("ul");

  /** @param {{project_id: string, title: string}} project @param {string} folder @param {Dropped} content */
  constructor(project, folder, content) {
    this.project = project;
    this.folder = folder;
    this.content = content;
    this.size = content.files.reduce((sum, { content }) => sum + content.size, 0);
    const tops = new Set(
      [...content.files.map(({ path }) => path), ...content.folders].map((path) => path.split("/")[0]),
    );
    const [first] = tops;
    this.name = tops.size === 1 ? visible(first) : `${visible(first)} and ${tops.size - 1} more`;
    const title = document.createElement("span");
    title.className = "code";
    title.textContent = this.name;
    this.bar.max = Math.max(this.size, 1);
    this.bar.value = 0;
    this.bar.ariaLabel = `Upload of ${this.name}`;
    this.said.className = "quiet number grow";
    this.problems.className = "error";
    this.pauseButton.ariaLabel = `Pause the upload of ${this.name}`;
    this.endButton.ariaLabel = `Cancel the upload of ${this.name}`;
    const row = document.createElement("div");
    row.className = "row";
    row.append(this.said, this.pauseButton, this.endButton);
    this.item.append(title, this.bar, row, this.problems);
  }

  pause() {
    if (this.state === "paused") {
      this.state = "running";
      this.go();
    } else {
      this.state = "paused";
      this.going = new Promise((resolve) => (this.go = () => resolve(undefined)));
    }
  }

  /** @param {string} path @param {string} why */
  refuse(path, why) {
    this.refusals++;
    if (this.refused.length < MOST_NAMED) this.refused.push(`${visible(path)}: ${why}`);
  }
}

export class Uploads {
  #client;
  #arrived;
  #uploads = /** @type {Upload[]} */ ([]);
  #running = /** @type {Upload | undefined} */ (undefined);
  #drawing = 0;

  /** @param {() => Client} client @param {(project: string, folder: string) => void} arrived is called after an upload */
  constructor(client, arrived) {
    this.#client = client;
    this.#arrived = arrived;
    addEventListener("beforeunload", (event) => {
      if (this.#uploads.some(({ state }) => state !== "over")) event.preventDefault();
    });
  }

  /**
   * @param {{project_id: string, title: string}} project
   * @param {string} folder
   * @param {Dropped} content
   */
  add(project, folder, content) {
    const upload = new Upload(project, folder, content);
    upload.pauseButton.addEventListener("click", () => {
      upload.pause();
      this.#draw();
    });
    upload.endButton.addEventListener("click", () => this.#end(upload));
    this.#uploads.push(upload);
    element("uploads").append(upload.item);
    void this.#next();
  }

  /** End the uploads of other projects. @param {Set<string>} projects that can still be used */
  keep(projects) {
    for (const upload of this.#uploads.slice()) if (!projects.has(upload.project.project_id)) this.#end(upload);
  }

  /** The connection or the project has come or gone. */
  draw() {
    this.#draw();
  }

  /** End an upload, or take one that is over from the list. @param {Upload} upload */
  #end(upload) {
    const wasOver = upload.state === "over";
    upload.state = "over";
    upload.abort.abort(new NatskitError("cancelled", "cancelled"));
    upload.go();
    if (wasOver || upload !== this.#running) {
      this.#uploads = this.#uploads.filter((one) => one !== upload);
      upload.item.remove();
    }
    this.#draw();
  }

  async #next() {
    const upload = this.#uploads.find(({ state }) => state === "waiting");
    if (this.#running || !upload) return this.#draw();
    this.#running = upload;
    upload.state = "running";
    this.#draw();
    try {
      await this.#send(upload);
    } catch (error) {
      upload.error = error instanceof Error ? error.message : String(error);
    }
    upload.state = "over";
    this.#running = undefined;
    this.#arrived(upload.project.project_id, upload.folder);
    this.#announce(upload);
    void this.#next();
  }

  /** @param {Upload} upload */
  async #send(upload) {
    const { project, folder, content } = upload;
    const { signal } = upload.abort;
    const inside = (/** @type {string} */ path) => (folder === "." ? path : `${folder}/${path}`);
    const files = this.#client().files(project.project_id);
    const seen = new Set();
    await files.uploadAll(
      content.files.map(({ path, content }) => ({ path: inside(path), content })),
      {
        signal,
        ready: () => upload.going,
        patience: Number.POSITIVE_INFINITY,
        onProgress: (path, more) => {
          upload.done += more;
          seen.add(path);
          upload.files = seen.size;
          this.#drawSoon();
        },
        onError: (path, error) => upload.refuse(path, error.message),
      },
    );
    for (const path of content.folders) {
      signal.throwIfAborted();
      await this.#client().callProject(project.project_id, "make_directory", { path: inside(path) });
    }
  }

  /** Say for screen readers how an upload ended. @param {Upload} upload */
  #announce(upload) {
    element("upload-status").textContent = upload.error
      ? `The upload of ${upload.name} has ended: ${upload.error}.`
      : `${upload.name} is uploaded${upload.refusals ? `, without ${counted(upload.refusals)} that ${upload.refusals === 1 ? "was" : "were"} refused` : ""}.`;
  }

  /** Draw before the browser shows the next picture: parts arrive more often. */
  #drawSoon() {
    this.#drawing ||= requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    this.#drawing = 0;
    element("uploads-section").hidden = this.#uploads.length === 0;
    for (const upload of this.#uploads) {
      const { state, pauseButton, endButton } = upload;
      upload.item.dataset.state = state;
      upload.bar.value = state === "over" && !upload.error ? upload.bar.max : upload.done;
      upload.said.textContent = this.#said(upload);
      pauseButton.hidden = state === "over" || state === "waiting";
      pauseButton.textContent = state === "paused" ? "Resume" : "Pause";
      pauseButton.ariaLabel = `${pauseButton.textContent} the upload of ${upload.name}`;
      endButton.textContent = state === "over" ? "Dismiss" : "Cancel";
      endButton.ariaLabel = `${endButton.textContent} the upload of ${upload.name}`;
      const more = upload.refusals - upload.refused.length;
      const problems = [...upload.refused, ...(more ? [`and ${more} more`] : [])];
      if (upload.problems.childElementCount !== problems.length) {
        upload.problems.replaceChildren(
          ...problems.map((text) => {
            const item = document.createElement("li");
            item.textContent = text;
            return item;
          }),
        );
      }
    }
  }

  /** @param {Upload} upload */
  #said(upload) {
    const { state, error, files, content, done, size, folder, project } = upload;
    if (error) return `Ended: ${error}`;
    const where = folder === "." ? project.title : `${project.title}: ${visible(folder)}`;
    if (state === "over") return `In ${where}: ${counted(content.files.length - upload.refusals)}, ${bytes(done)}`;
    if (state === "waiting") return "Waits for the upload before it";
    const much = `${files} of ${counted(content.files.length)}, ${bytes(done)} of ${bytes(size)}`;
    if (state === "paused") return `Paused: ${much}`;
    return this.#client().state === "connected" ? much : `Waits for the connection: ${much}`;
  }
}

/** @param {string} text */
function button(text) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  return made;
}

/** @param {number} files */
function counted(files) {
  return `${files} ${files === 1 ? "file" : "files"}`;
}
