/** Small plots with uPlot. What a plot shows now is also there as text, for those who do not see it. */

import uPlot from "uplot";

const HEIGHT = 110;

/** One plot: its title, its lines with their names and colours (custom properties), and how a value is written.
 * @typedef {object} Shown
 * @property {string} title
 * @property {{name: string, colour: string}[]} lines
 * @property {(value: number) => string} write
 */

export class Plot {
  #shown;
  #figure = document.createElement("figure");
  #now = document.createElement("figcaption");
  #plot;

  /** @param {Shown} shown @param {HTMLElement} place */
  constructor(shown, place) {
    this.#shown = shown;
    const box = document.createElement("div");
    box.setAttribute("aria-hidden", "true"); // the caption says it
    this.#figure.append(this.#now, box);
    place.append(this.#figure);
    this.#plot = new uPlot(this.#options(), [[], ...shown.lines.map(() => [])], box);
    new ResizeObserver(() => this.#fit()).observe(this.#figure);
    // A canvas does not follow the colours of the page by itself.
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#plot.redraw(false));
  }

  /** @param {import("./measures.js").Series} series */
  draw(series) {
    this.#plot.setData(/** @type {uPlot.AlignedData} */ (series));
    const title = document.createElement("strong");
    title.textContent = this.#shown.title;
    const values = this.#shown.lines.map(({ name, colour }, number) => {
      const value = series[number + 1]?.at(-1);
      const text = document.createElement("span");
      text.className = `value ${colour}`;
      text.textContent = `${name ? `${name} ` : ""}${value == null ? "–" : this.#shown.write(value)}`;
      return text;
    });
    this.#now.replaceChildren(title, ...values);
  }

  #fit() {
    const width = Math.floor(this.#figure.clientWidth);
    if (width > 0 && width !== this.#plot.width) this.#plot.setSize({ width, height: HEIGHT });
  }

  /** @returns {uPlot.Options} */
  #options() {
    const axis = {
      stroke: () => colour("--quiet"),
      grid: { stroke: () => colour("--line"), width: 1 },
      ticks: { show: false },
    };
    return {
      width: 300,
      height: HEIGHT,
      cursor: { show: false },
      legend: { show: false },
      scales: { y: { range: (_, __, most) => [0, most > 0 ? most * 1.1 : 1] } },
      axes: [
        { ...axis, size: 28, space: 80, values: (_, splits) => splits.map(clock) },
        { ...axis, size: 52, space: 30, values: (_, splits) => splits.map((value) => this.#shown.write(value)) },
      ],
      series: [
        {},
        ...this.#shown.lines.map((line) => ({
          stroke: () => colour(`--${line.colour}`),
          width: 2,
          points: { show: false },
        })),
      ],
    };
  }
}

/** @param {number} seconds in Unix time */
function clock(seconds) {
  return new Date(seconds * 1000).toLocaleTimeString(undefined, {
    hour: "2-digit",
    minute: "2-digit",
    second: "2-digit",
    hourCycle: "h23",
  });
}

/** The present value of a colour of the page, which has one for light and one for dark. @param {string} property */
function colour(property) {
  const probe = document.createElement("span");
  probe.style.color = `var(${property})`;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}
