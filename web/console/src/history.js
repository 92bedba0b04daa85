/** Time travel: look at any moment of a document, see who changed what, and bring a moment back. */

import { compare } from "@natskit/client/document";
import { textOf } from "./notebook-text.js";
import { element, guard, listItem, visible } from "./page.js";

/** @typedef {import("@natskit/client/document").ProjectDocuments} ProjectDocuments */
/** @typedef {import("@natskit/client/document").SharedDocument} SharedDocument */

/** How many moments are remembered, for a slider that goes to and fro. */
const REMEMBERED = 50;
/** In how many steps a history is played. */
const PLAYED = 60;
/** Between two steps, in milliseconds. */
const PLAY_PAUSE = 150;
/** How long after a change the history is read again, in milliseconds. */
const REFRESH_AFTER = 500;

export class History {
  #people;
  #leave;
  /** @type {ProjectDocuments | undefined} */
  #documents;
  /** @type {SharedDocument | undefined} */
  #shared;
  /** @type {import("@natskit/client/document").Step[]} */
  #steps = [];
  /** @type {import("@natskit/client/document").Version[]} */
  #versions = [];
  /** @type {Map<number, Promise<import("yjs").Doc>>} */
  #moments = new Map();
  #turn = 0;
  #playing = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  #refreshing;

  /** @param {import("./people.js").People} people @param {() => void} leave goes back to the editor */
  constructor(people, leave) {
    this.#people = people;
    this.#leave = leave;
    for (const id of ["history-at", "history-from"]) {
      element(id).addEventListener("input", () => {
        this.#playing = false;
        void this.#show();
      });
    }
    element("history-compare").addEventListener("change", () => void this.#show());
    element("history-play").addEventListener("click", () => void this.#play());
    this.#onClick("history-restore", () => this.#restore());
    element("history-name-form").addEventListener("submit", (event) => {
      event.preventDefault();
      void guard("history-error", () => this.#name(), "history-name-form");
    });
  }

  /** @param {ProjectDocuments} documents @param {SharedDocument} shared */
  async open(documents, shared) {
    this.close();
    this.#documents = documents;
    this.#shared = shared;
    shared.doc.on("update", this.#refreshSoon);
    element("history").hidden = false;
    await guard("history-error", () => this.#read());
    element("history-at").focus();
  }

  close() {
    this.#turn++;
    this.#playing = false;
    clearTimeout(this.#refreshing);
    this.#shared?.doc.off("update", this.#refreshSoon);
    this.#shared = undefined;
    this.#steps = [];
    this.#moments.clear();
    element("history").hidden = true;
    element("history-text").replaceChildren();
    element("history-error").textContent = "";
  }

  #refreshSoon = () => {
    clearTimeout(this.#refreshing);
    this.#refreshing = setTimeout(() => void guard("history-error", () => this.#read()), REFRESH_AFTER);
  };

  /** Read what is new. A slider at the end stays at the end. */
  async #read() {
    const shared = this.#shared;
    if (!shared) return;
    const { steps, versions } = await this.#service().history(shared.documentId, this.#steps.at(-1)?.sequence ?? 0);
    if (shared !== this.#shared) return;
    const at = element("history-at", HTMLInputElement);
    const isAtEnd = Number(at.value) >= this.#steps.length;
    this.#steps.push(...steps);
    this.#versions = versions;
    for (const slider of [at, element("history-from", HTMLInputElement)]) slider.max = String(this.#steps.length);
    if (isAtEnd) at.value = at.max;
    this.#drawVersions();
    await this.#show();
  }

  /** Show the moment of the slider. Only the last of several is drawn. */
  async #show() {
    const turn = ++this.#turn;
    const [at, from] = ["history-at", "history-from"].map((id) => element(id, HTMLInputElement));
    const comparing = element("history-compare", HTMLInputElement).checked;
    element("history-from-label").hidden = !comparing;
    this.#say(at, "history-when");
    this.#say(from, "history-since");
    element("history-play").textContent = this.#playing ? "Pause" : "Play";
    const [until, since] = [Number(at.value), Number(from.value)];
    await guard("history-error", async () => {
      const pieces = comparing
        ? await this.#changes(Math.min(since, until), Math.max(since, until))
        : [same(textAt(await this.#moment(until)))];
      if (turn === this.#turn) this.#draw(pieces);
    });
  }

  /** @param {number} since @param {number} until */
  async #changes(since, until) {
    const [before, after] = await Promise.all([this.#moment(since), this.#moment(until)]);
    const updates = [];
    const stored = this.#service().updates(this.#id(), this.#sequence(since), this.#sequence(until));
    for await (const update of stored) updates.push(update);
    const pieces = compare(before, after, updates);
    return pieces.length > 0 ? pieces : [same(textAt(after))]; // of a notebook, the text at the second moment
  }

  /** @param {number} index @returns {Promise<import("yjs").Doc>} */
  #moment(index) {
    const sequence = this.#sequence(index);
    let moment = this.#moments.get(sequence);
    if (!moment) {
      moment = this.#service().stateAt(this.#id(), sequence);
      moment.catch(() => this.#moments.delete(sequence));
      this.#moments.set(sequence, moment);
      for (const old of this.#moments.keys()) if (this.#moments.size > REMEMBERED) this.#moments.delete(old);
    }
    return moment;
  }

  /** @param {import("@natskit/client/document").Piece[]} pieces */
  #draw(pieces) {
    element("history-text").replaceChildren(
      ...pieces.map(({ kind, text, author }) => {
        if (kind === "same") return text;
        const made = document.createElement(kind === "inserted" ? "ins" : "del");
        made.className = `author-${this.#people.number(author)}`;
        made.title = `${kind} by ${author ? this.#people.name(author) : "somebody"}`;
        made.textContent = text;
        return made;
      }),
    );
    const authors = new Set(pieces.flatMap(({ kind, author }) => (kind === "same" ? [] : [author])));
    element("history-authors").replaceChildren(
      ...[...authors].map((author) => {
        const item = document.createElement("li");
        item.className = `author-${this.#people.number(author)}`;
        item.textContent = author ? this.#people.name(author) : "somebody";
        return item;
      }),
    );
  }

  /** Say which moment a slider is at. @param {HTMLInputElement} slider @param {string} place */
  #say(slider, place) {
    const step = this.#steps[Number(slider.value) - 1];
    const said = step ? `${moment(step.time)}, by ${this.#people.name(step.author)}` : "before the first change";
    slider.setAttribute("aria-valuetext", said);
    element(place).textContent = said;
  }

  async #play() {
    const at = element("history-at", HTMLInputElement);
    this.#playing = !this.#playing;
    if (this.#playing && at.value === at.max) at.value = "0";
    const stride = Math.max(1, Math.ceil(this.#steps.length / PLAYED));
    while (this.#playing && at.value !== at.max) {
      at.value = String(Math.min(this.#steps.length, Number(at.value) + stride));
      await this.#show();
      await new Promise((resolve) => setTimeout(resolve, PLAY_PAUSE));
    }
    this.#playing = false;
    element("history-play").textContent = "Play";
  }

  async #restore() {
    const shared = this.#shared;
    const step = this.#step();
    if (!shared || !step) return;
    await shared.saved();
    await this.#service().restore(shared.documentId, step.sequence);
    this.#leave();
  }

  async #name() {
    const field = element("history-name", HTMLInputElement);
    const step = this.#step();
    if (!step || !field.value.trim()) return;
    await this.#service().nameVersion(this.#id(), step.sequence, field.value.trim());
    field.value = "";
    await this.#read();
  }

  #drawVersions() {
    element("history-versions").replaceChildren(
      ...this.#versions.map(({ sequence, name, author, time }) => {
        const item = listItem("", `${this.#people.name(author)}, ${moment(time)}`);
        const [go, remove] = [document.createElement("button"), document.createElement("button")];
        go.type = remove.type = "button";
        go.textContent = visible(name);
        go.addEventListener("click", () => {
          element("history-at", HTMLInputElement).value = String(this.#index(sequence));
          void this.#show();
        });
        remove.textContent = "Remove";
        remove.setAttribute("aria-label", `Remove the name ${visible(name)}`);
        remove.addEventListener("click", () => {
          void guard("history-error", async () => {
            await this.#service().nameVersion(this.#id(), sequence, "");
            await this.#read();
          });
        });
        item.prepend(go);
        item.append(remove);
        return item;
      }),
    );
  }

  /** @param {number} sequence */
  #index(sequence) {
    return this.#steps.findLastIndex((step) => step.sequence <= sequence) + 1;
  }

  #step() {
    return this.#steps[Number(element("history-at", HTMLInputElement).value) - 1];
  }

  /** @param {number} index */
  #sequence(index) {
    return this.#steps[index - 1]?.sequence ?? 0;
  }

  #service() {
    return /** @type {ProjectDocuments} */ (this.#documents);
  }

  #id() {
    return this.#shared?.documentId ?? "";
  }

  /** @param {string} button @param {() => Promise<void>} action */
  #onClick(button, action) {
    element(button).addEventListener("click", () => void guard("history-error", action, button));
  }
}

/** What a document reads as. @param {import("yjs").Doc} doc */
function textAt(doc) {
  return doc.getText("text").toString() || textOf(doc);
}

/** @param {string} text @returns {import("@natskit/client/document").Piece} */
function same(text) {
  return { kind: "same", text, author: "" };
}

/** @param {number} time */
function moment(time) {
  return new Date(time).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
}
