/**
 * Pictures, sound, video and PDFs of a project. The hub serves them so that they cannot act as the site
 * (natskit/hub/web/files.py); this page shows them in elements that run no scripts of theirs.
 */

import { element, visible } from "./page.js";
import { explain, PdfViewer } from "./pdf.js";

/** The kinds of files that are shown, by the ends of their names. Source: MEDIA in natskit/hub/web/files.py. */
const KINDS = {
  img: ["png", "jpg", "jpeg", "gif", "webp", "avif"],
  audio: ["mp3", "ogg", "wav", "flac"],
  video: ["mp4", "webm"],
};

/** @typedef {"img" | "audio" | "video" | "pdf"} Kind */

/** How a file can be shown. @param {string} path @returns {Kind | undefined} */
export function kindOf(path) {
  const end = path.split(".").at(-1)?.toLowerCase() ?? "";
  if (end === "pdf") return "pdf";
  for (const kind of /** @type {const} */ (["img", "audio", "video"])) if (KINDS[kind].includes(end)) return kind;
  return undefined;
}

/**
 * Show a file.
 * @param {Kind} kind @param {import("@natskit/client").ProjectFiles} files @param {string} path
 */
export function show(kind, files, path) {
  const dialog = element("preview-dialog", HTMLDialogElement);
  const address = files.address(path);
  element("preview-error").textContent = "";
  element("preview-name").textContent = visible(path);
  element("preview-download", HTMLAnchorElement).href = address;
  if (!dialog.open) dialog.showModal();
  const close = kind === "pdf" ? showPdf(files, path) : showMedia(kind, address, path);
  dialog.addEventListener("close", close, { once: true });
}

/** @param {import("@natskit/client").ProjectFiles} files @param {string} path */
function showPdf(files, path) {
  const viewer = new PdfViewer(element("preview"), (error) => {
    element("preview-error").textContent = explain(error);
  });
  void viewer.open(files, path);
  return () => {
    viewer.close();
    element("preview").replaceChildren();
  };
}

/** @param {"img" | "audio" | "video"} kind @param {string} address @param {string} path */
function showMedia(kind, address, path) {
  const shown = document.createElement(kind);
  if (shown instanceof HTMLImageElement) shown.alt = visible(path);
  else {
    shown.controls = true;
    shown.ariaLabel = visible(path);
  }
  shown.addEventListener("error", () => {
    element("preview-error").textContent =
      "This file cannot be shown: it is damaged, or of a kind that this browser does not know.";
  });
  shown.src = address;
  element("preview").replaceChildren(shown);
  return () => element("preview").replaceChildren();
}
