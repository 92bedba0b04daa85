/** The authors of a document: their names and colours. */

/** One for each author, until there are more of them. They are readable on light and on dark, with white on them. */
const COLORS = ["#2456d6", "#b3261e", "#14804a", "#8a3ffc", "#a15c00", "#00707a", "#a2186b", "#5c6573"];

/** The author of changes that came from the files of the project. */
export const DISK = "disk";

/** The author of an old part of a history that was merged of those of several. */
const SEVERAL = "several";

export class People {
  #project;
  /** @type {string[]} */
  #known = [];

  /** @param {() => import("@natskit/client").Project | undefined} project the selected one */
  constructor(project) {
    this.#project = project;
  }

  /** @param {string} author @returns {string} */
  name(author) {
    if (author === "admin") return "an operator";
    if (author === DISK) return "the project’s disk";
    if (author === SEVERAL) return "several people";
    const person = this.#project()?.collaborators.find(({ account_id }) => account_id === author);
    return person?.email ?? "a former member";
  }

  /** Which of the colours is an author's. @param {string} author @returns {number} */
  number(author) {
    let at = this.#known.indexOf(author);
    if (at < 0) at = this.#known.push(author) - 1;
    return at % COLORS.length;
  }

  /** What others see at an author's cursor. @param {string} author */
  identify(author) {
    const color = COLORS[this.number(author)];
    return { name: this.name(author), color, colorLight: `${color}33` };
  }
}
