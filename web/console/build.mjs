/** Bundle the browser module and the console page into web/dist. */
import { cp, mkdir, readdir, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const dist = join(here, "..", "dist");

await rm(dist, { recursive: true, force: true });
await mkdir(dist);
/** PDF.js is already bundled, and is loaded when the first PDF is opened. */
const pdfjs = {
  name: "pdfjs",
  /** @param {import("esbuild").PluginBuild} build */
  setup(build) {
    build.onResolve({ filter: /^pdfjs-dist$/ }, () => ({ path: "./pdfjs/pdf.js", external: true }));
  },
};
await build({
  absWorkingDir: here,
  entryPoints: { natskit: "@natskit/client", console: "src/console.js" },
  bundle: true,
  splitting: true,
  format: "esm",
  target: "es2022",
  minify: true,
  sourcemap: true,
  legalComments: "none",
  outdir: dist,
  plugins: [pdfjs],
  logLevel: "warning",
});
await cp(fileURLToPath(import.meta.resolve("@xterm/xterm/css/xterm.css")), join(dist, "xterm.css"));
await cp(join(dirname(fileURLToPath(import.meta.resolve("uplot"))), "uPlot.min.css"), join(dist, "uplot.css"));
for (const file of ["index.html", "console.css", "files.css", "platform.css", "icon.svg"])
  await cp(join(here, file), join(dist, file));

const from = join(dirname(fileURLToPath(import.meta.resolve("pdfjs-dist"))), "..");
const to = join(dist, "pdfjs");
await cp(join(from, "build", "pdf.min.mjs"), join(to, "pdf.js"));
await cp(join(from, "build", "pdf.worker.min.mjs"), join(to, "worker.js"));
await cp(join(from, "cmaps"), join(to, "cmaps"), { recursive: true });
await cp(join(from, "standard_fonts"), join(to, "fonts"), { recursive: true });
for (const file of await readdir(join(from, "wasm"))) {
  if (/_nowasm_fallback\.js$|^LICENSE_(PDFJS_)?(JBIG2|OPENJPEG)$/.test(file)) {
    await cp(join(from, "wasm", file), join(to, "decoders", file));
  }
}
