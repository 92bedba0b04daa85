/**
 * Line endings. A textarea has one kind: it turns "\r\n" and "\r" into "\n". A file keeps its line endings, even if it
 * has several kinds: those of unedited lines are looked up in the text that was opened.
 */

const BREAK = /\r\n|\r|\n/g;
/** Some editors put it at the beginning of a file. It is not shown, so that nothing can be typed before it. */
const BYTE_ORDER_MARK = "\ufeff";
/** If more lines differ, line endings are guessed: the time to compare them grows with the square. */
const MOST_DIFFERENCES = 2_000;

/** What a textarea shows of a text. @param {string} text @returns {string} */
export function shown(text) {
  return (text.startsWith(BYTE_ORDER_MARK) ? text.slice(1) : text).replace(/\r\n?/g, "\n");
}

/**
 * An edited text with the line endings of the original. A new line gets the ending of the line before it.
 * @param {string} original @param {string} edited as a textarea has it @returns {string}
 */
export function restore(original, edited) {
  const mark = original.startsWith(BYTE_ORDER_MARK) ? BYTE_ORDER_MARK : "";
  const breaks = original.match(BREAK) ?? [];
  if (new Set(breaks).size <= 1) return mark + edited.replaceAll("\n", breaks[0] ?? "\n");
  const lines = edited.split("\n");
  const from = origins(shown(original).split("\n"), lines);
  let last = breaks[0];
  const parts = lines.slice(0, -1).map((line, number) => {
    last = breaks[from[number]] ?? last;
    return line + last;
  });
  return mark + parts.join("") + lines.at(-1);
}

/**
 * For each line after an edit, its number before the edit, or -1 for a new line.
 * @param {string[]} before @param {string[]} after @returns {Int32Array}
 */
function origins(before, after) {
  const from = new Int32Array(after.length).fill(-1);
  let head = 0;
  while (head < before.length && head < after.length && before[head] === after[head]) from[head] = head++;
  let [i, j] = [before.length, after.length];
  while (i > head && j > head && before[i - 1] === after[j - 1]) from[--j] = --i;
  // From the end: a changed line, split or joined with others, gets the ending of the last of them.
  for (const [x, y] of [...matches(before.slice(head, i), after.slice(head, j)), [-1, -1]]) {
    while (i > head + x + 1 && j > head + y + 1) from[--j] = --i;
    [i, j] = [head + x, head + y];
    if (x >= 0) from[j] = i;
  }
  return from;
}

/**
 * The lines that two texts have in common, as pairs of their numbers, the last pair first: the algorithm of E. W. Myers,
 * "An O(ND) Difference Algorithm and Its Variations" (1986). None if too many lines differ.
 * @param {string[]} a @param {string[]} b @returns {[number, number][]}
 */
function matches(a, b) {
  const most = Math.min(a.length + b.length, MOST_DIFFERENCES);
  const reach = new Int32Array(2 * most + 3);
  const zero = most + 1;
  /** @type {Int32Array[]} */
  const steps = [];
  for (let d = 0; d <= most; d++) {
    steps.push(reach.slice(zero - d - 1, zero + d + 2));
    for (let k = -d; k <= d; k += 2) {
      let x = down(reach, zero, k, d) ? reach[zero + k + 1] : reach[zero + k - 1] + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x++;
      reach[zero + k] = x;
      if (x >= a.length && x - k >= b.length) return wayBack(steps, a.length, b.length);
    }
  }
  return [];
}

/** @param {Int32Array} reach @param {number} zero @param {number} k @param {number} d */
function down(reach, zero, k, d) {
  return k === -d || (k !== d && reach[zero + k - 1] < reach[zero + k + 1]);
}

/** @param {Int32Array[]} steps @param {number} x @param {number} y @returns {[number, number][]} */
function wayBack(steps, x, y) {
  /** @type {[number, number][]} */
  const pairs = [];
  for (let d = steps.length - 1; d >= 0; d--) {
    const [reach, zero, k] = [steps[d], d + 1, x - y];
    const step = down(reach, zero, k, d) ? 1 : -1;
    const before = d === 0 ? 0 : k + step;
    const start = d === 0 ? 0 : reach[zero + before];
    while (x > start && y > start - before) pairs.push([--x, --y]);
    [x, y] = [start, start - before];
  }
  return pairs;
}
