/**
 * Pictures, sound and video of a project. The hub serves them so that they cannot act as the site
 * (natskit/hub/web/files.py); this page shows them in elements that run no scripts of theirs.
 */

import { element, visible } from "./page.js";

/** The kinds of files that are shown, by the ends of their names. Source: MEDIA in natskit/hub/web/files.py. */
const KINDS = {
  img: ["png", "jpg", "jpeg", "gif", "webp", "avif"],
  audio: ["mp3", "ogg", "wav", "flac"],
  video: ["mp4", "webm"],
};

/** How a file can be shown. @param {string} path @returns {"img" | "audio" | "video" | undefined} */
export function kindOf(path) {
  const end = path.split(".").at(-1)?.toLowerCase() ?? "";
  for (const kind of /** @type {const} */ (["img", "audio", "video"])) if (KINDS[kind].includes(end)) return kind;
  return undefined;
}

/**
 * Show a file.
 * @param {"img" | "audio" | "video"} kind @param {string} address @param {string} path
 */
export function show(kind, address, path) {
  const dialog = element("preview-dialog", HTMLDialogElement);
  const box = element("preview");
  const shown = document.createElement(kind);
  if (shown instanceof HTMLImageElement) shown.alt = visible(path);
  else {
    shown.controls = true;
    shown.ariaLabel = visible(path);
  }
  element("preview-error").textContent = "";
  shown.addEventListener("error", () => {
    element("preview-error").textContent =
      "This file cannot be shown: it is damaged, or of a kind that this browser does not know.";
  });
  shown.src = address;
  box.replaceChildren(shown);
  element("preview-name").textContent = visible(path);
  element("preview-download", HTMLAnchorElement).href = address;
  dialog.addEventListener("close", () => box.replaceChildren(), { once: true });
  if (!dialog.open) dialog.showModal();
}
