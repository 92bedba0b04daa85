/**
 * Markdown as a page. Others write it, so nothing in it may act as the site: HTML in it is text, links open elsewhere,
 * there are no images (a browser would send a request with the session's cookie), and what the renderer makes is
 * sanitised to a few elements without ids, classes and styles.
 */

import createDOMPurify from "dompurify";
import MarkdownIt from "markdown-it";

const markdown = new MarkdownIt({ html: false, linkify: true }).disable("image");
const purify = createDOMPurify(window);
const ALLOWED = {
  ALLOWED_TAGS: [
    ...["h1", "h2", "h3", "h4", "h5", "h6", "p", "br", "hr", "ul", "ol", "li", "blockquote", "pre", "code", "em"],
    ...["strong", "s", "a", "table", "thead", "tbody", "tr", "th", "td"],
  ],
  ALLOWED_ATTR: ["href", "title", "start"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: /** @type {const} */ (true),
};

purify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A") return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer");
});

/** @param {string} text @returns {DocumentFragment} */
export function render(text) {
  return purify.sanitize(markdown.render(text), ALLOWED);
}
