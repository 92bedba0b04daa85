// Draws with the console's xterm.js, without a page: reads {columns, rows, streams}, each stream in base64, and writes what
// each of them leaves: the cells of the screen, the cursor, and which screen it is. Run it in web/, where xterm.js is.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

globalThis.self = globalThis.window = globalThis;
globalThis.document = { createElement: () => ({ getContext: () => null }), documentElement: { style: {} } };
Object.defineProperty(globalThis, "navigator", { value: { userAgent: "", platform: "", language: "en" } });
const require = createRequire(`${process.cwd()}/`);
const { Terminal } = require("@xterm/xterm");
const { Unicode11Addon } = require("@xterm/addon-unicode11");

const { columns, rows, streams } = JSON.parse(readFileSync(0, "utf8"));

function cellsOf(buffer) {
  const cell = buffer.getNullCell();
  const cells = [];
  for (let y = 0; y < rows; y++) {
    const line = buffer.getLine(buffer.baseY + y);
    for (let x = 0; x < columns; x++) {
      line.getCell(x, cell);
      const colours = [cell.isFgRGB(), cell.getFgColor(), cell.isBgRGB(), cell.getBgColor()];
      const weight = [cell.isBold(), cell.isDim(), cell.isItalic(), cell.isUnderline(), cell.isOverline()];
      const rest = [cell.isBlink(), cell.isInverse(), cell.isInvisible(), cell.isStrikethrough(), cell.getWidth()];
      cells.push([cell.getChars() || " ", ...[...colours, ...weight, ...rest].map(Number)].join());
    }
  }
  return cells;
}

const looks = [];
for (const stream of streams) {
  const terminal = new Terminal({ cols: columns, rows, scrollback: 10_000, allowProposedApi: true });
  terminal.loadAddon(new Unicode11Addon());
  terminal.unicode.activeVersion = "11";
  await new Promise((drawn) => terminal.write(Buffer.from(stream, "base64"), drawn));
  const { active } = terminal.buffer;
  looks.push({ cells: cellsOf(active), cursor: [active.cursorX, active.cursorY], screen: active.type });
  terminal.dispose();
}
process.stdout.write(JSON.stringify(looks));
