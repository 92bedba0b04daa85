/** Bundle the browser module and the console page into dist/. */
import { cp, mkdir, rm } from "node:fs/promises";
import { build } from "esbuild";

await rm("dist", { recursive: true, force: true });
await mkdir("dist");
await build({
  entryPoints: { natskit: "src/natskit.js", console: "console/console.js" },
  bundle: true,
  splitting: true,
  format: "esm",
  target: "es2022",
  minify: true,
  sourcemap: true,
  legalComments: "none",
  outdir: "dist",
  logLevel: "warning",
});
for (const file of ["index.html", "console.css", "icon.svg"]) await cp(`console/${file}`, `dist/${file}`);
