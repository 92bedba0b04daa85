/**
 * Styles for xterm.js and CodeMirror under this site's Content-Security-Policy, which allows no inline style. xterm.js makes <style>
 * elements when it opens, and sets the style attribute of its cells. Both become what the policy allows, because only
 * scripts can do it: constructed style sheets, and the properties of an element's style. Its option `documentOverride`
 * does not help: xterm.js 6.0 uses the page's own document for its scrollbar and its cells all the same.
 */

/** The cells are spans. @param {string} name @param {string} value */
HTMLSpanElement.prototype.setAttribute = function (name, value) {
  if (name === "style") this.style.cssText = value;
  else Element.prototype.setAttribute.call(this, name, value);
};

/**
 * Do what makes <style> elements: xterm.js does when it opens, and whenever it changes how it draws.
 * @param {() => void} work
 */
export function strictly(work) {
  const make = document.createElement;
  document.createElement = /** @type {typeof make} */ (
    (/** @type {string} */ tag) => (tag === "style" ? sheet() : make.call(document, tag))
  );
  try {
    work();
  } finally {
    document.createElement = make;
  }
}

/** An element whose text is a style sheet of the page, until it is removed. */
function sheet() {
  const made = document.createElement.call(document, "template");
  const styles = new CSSStyleSheet();
  document.adoptedStyleSheets.push(styles);
  Object.defineProperty(made, "textContent", { set: (text) => styles.replaceSync(text) });
  made.remove = () => {
    document.adoptedStyleSheets = document.adoptedStyleSheets.filter((each) => each !== styles);
    Element.prototype.remove.call(made);
  };
  return made;
}
