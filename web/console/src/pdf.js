/**
 * PDFs of a project, drawn by PDF.js. Their scripts do not run: PDF.js runs none without its sandbox, which is not
 * built in. Links and forms are only drawn. Fonts are drawn as outlines, so that no font of a project gets to the
 * browser. The worker reads the parts of the file that a page needs, so a large file takes little memory.
 */

/** @typedef {import("@natskit/client").ProjectFiles} ProjectFiles */
/** @typedef {import("pdfjs-dist").PDFDocumentProxy} Pdf */
/** @typedef {import("pdfjs-dist").RenderTask} RenderTask */

/** Bytes that the worker asks for at a time. */
const RANGE_BYTES = 1024 * 1024;
/** Pixels of a drawn page, and of a picture in it: more would take hundreds of megabytes. */
const MOST_PIXELS = 16 * 1024 * 1024;

/** A PDF in an element of the page. */
export class PdfViewer {
  #canvas = document.createElement("canvas");
  #where = document.createElement("span");
  #back;
  #on;
  #failed;
  #page = 1;
  #ended = false;
  /** @type {Pdf | undefined} */
  #pdf;
  /** @type {import("pdfjs-dist").PDFDocumentLoadingTask | undefined} */
  #loading;
  /** @type {RenderTask | undefined} */
  #drawing;

  /**
   * @param {HTMLElement} box is filled
   * @param {(error: unknown) => void} failed is called if the file cannot be shown
   */
  constructor(box, failed) {
    this.#failed = failed;
    this.#back = this.#button("Previous page", -1);
    this.#on = this.#button("Next page", 1);
    this.#where.setAttribute("role", "status");
    const row = document.createElement("div");
    row.className = "row";
    row.append(this.#back, this.#on, this.#where);
    const sheet = document.createElement("div");
    sheet.className = "sheet";
    sheet.tabIndex = 0;
    sheet.append(this.#canvas);
    box.replaceChildren(row, sheet);
    sheet.addEventListener("keydown", (event) => {
      const steps = { PageDown: 1, ArrowRight: 1, PageUp: -1, ArrowLeft: -1 };
      const step = steps[/** @type {keyof typeof steps} */ (event.key)];
      if (!step) return;
      event.preventDefault();
      void this.#turn(step);
    });
  }

  /** Show a file. @param {ProjectFiles} files @param {string} path */
  async open(files, path) {
    this.#where.textContent = "Opening …";
    try {
      const pdfjs = await import("pdfjs-dist");
      pdfjs.GlobalWorkerOptions.workerSrc = address("worker.js");
      const first = await oneOf(files.read(path, { size: 1 }));
      if (this.#ended) return;
      if (!first.state.size) throw new Error("the file is empty");
      this.#loading = pdfjs.getDocument({
        range: rangesOf(pdfjs, files, path, first.state.size, (error) => this.#fail(error)),
        rangeChunkSize: RANGE_BYTES,
        disableAutoFetch: true,
        disableStream: true,
        disableFontFace: true,
        disableWorkerRendering: true,
        maxImageSize: MOST_PIXELS,
        // Compiled WebAssembly is not allowed by the site's Content-Security-Policy.
        useWasm: false,
        wasmUrl: address("decoders/"),
        cMapUrl: address("cmaps/"),
        standardFontDataUrl: address("fonts/"),
        verbosity: pdfjs.VerbosityLevel.ERRORS,
      });
      this.#pdf = await this.#loading.promise;
      await this.#draw();
    } catch (error) {
      this.#fail(error);
    }
  }

  /** Let go of the file. */
  close() {
    this.#ended = true;
    this.#drawing?.cancel();
    void this.#loading?.destroy();
  }

  /** @param {unknown} error */
  #fail(error) {
    if (this.#ended) return;
    this.#where.textContent = "";
    this.#failed(error);
    this.close();
  }

  /** @param {string} name @param {number} step */
  #button(name, step) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.disabled = true;
    button.addEventListener("click", () => void this.#turn(step));
    return button;
  }

  /** @param {number} step */
  async #turn(step) {
    const page = this.#page + step;
    if (!this.#pdf || page < 1 || page > this.#pdf.numPages) return;
    this.#page = page;
    try {
      await this.#draw();
    } catch (error) {
      this.#fail(error);
    }
  }

  /** Draw the page, as wide as there is room. */
  async #draw() {
    const [pdf, number] = [this.#pdf, this.#page];
    if (!pdf) return;
    this.#drawing?.cancel();
    this.#where.textContent = `Page ${number} of ${pdf.numPages}`;
    [this.#back.disabled, this.#on.disabled] = [number === 1, number === pdf.numPages];
    const page = await pdf.getPage(number);
    const plain = page.getViewport({ scale: 1 });
    const room = (this.#canvas.parentElement?.clientWidth ?? 0) * devicePixelRatio;
    const most = Math.sqrt(MOST_PIXELS / (plain.width * plain.height));
    const viewport = page.getViewport({ scale: Math.min(room / plain.width, most) });
    const text = await page.getTextContent();
    if (this.#ended || number !== this.#page) return;
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.floor(viewport.width));
    canvas.height = Math.max(1, Math.floor(viewport.height));
    // Screen readers read what is in a canvas instead of the picture.
    canvas.textContent = text.items.map((item) => ("str" in item ? item.str + (item.hasEOL ? "\n" : "") : "")).join("");
    this.#drawing = page.render({ canvas, viewport });
    try {
      await this.#drawing.promise;
    } catch (error) {
      if (error instanceof Error && error.name === "RenderingCancelledException") return; // another page is drawn
      throw error;
    }
    if (number !== this.#page) return;
    this.#canvas.replaceWith(canvas);
    this.#canvas = canvas;
    canvas.dataset.page = String(number);
  }
}

/** Why a PDF cannot be shown. @param {unknown} error */
export function explain(error) {
  const name = error instanceof Error ? error.name : "";
  if (name === "PasswordException") return "This PDF needs a password: download it.";
  if (name === "InvalidPDFException") return "This file cannot be shown: it is damaged, or no PDF.";
  return `This PDF cannot be shown: ${error instanceof Error ? error.message : error}`;
}

/**
 * The parts of a file that the worker asks for.
 * @param {typeof import("pdfjs-dist")} pdfjs
 * @param {ProjectFiles} files @param {string} path @param {number} size
 * @param {(error: unknown) => void} failed
 */
function rangesOf(pdfjs, files, path, size, failed) {
  const ended = new AbortController();
  class Ranges extends pdfjs.PDFDataRangeTransport {
    /** @param {number} begin @param {number} end */
    async requestDataRange(begin, end) {
      try {
        const parts = [];
        for await (const { data } of files.read(path, { offset: begin, size: end - begin, signal: ended.signal })) {
          parts.push(/** @type {BlobPart} */ (data));
        }
        this.onDataRange(begin, new Uint8Array(await new Blob(parts).arrayBuffer()));
      } catch (error) {
        if (!ended.signal.aborted) failed(error);
      }
    }

    abort() {
      ended.abort();
    }
  }
  return new Ranges(size, null);
}

/** @template T @param {AsyncGenerator<T>} parts @returns {Promise<T>} */
async function oneOf(parts) {
  const { value } = await parts.next();
  await parts.return(undefined);
  return value;
}

/** @param {string} name of a file of PDF.js on the site */
function address(name) {
  return new URL(`/pdfjs/${name}`, location.href).href;
}
