/** Bundle the browser module and the console page into web/dist. */
import { cp, mkdir, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const dist = join(here, "..", "dist");

await rm(dist, { recursive: true, force: true });
await mkdir(dist);
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
  logLevel: "warning",
});
await cp(fileURLToPath(import.meta.resolve("@xterm/xterm/css/xterm.css")), join(dist, "xterm.css"));
for (const file of ["index.html", "console.css", "files.css", "icon.svg"]) await cp(join(here, file), join(dist, file));
