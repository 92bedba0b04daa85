"""The npm package ``@natskit/client`` from its tarball: installed, type-checked, bundled, and run in Chromium."""

from __future__ import annotations

import re
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page

from tests.platform.site import Site, World
from tests.platform.test_console import browser, context, page

__all__ = ["browser", "context", "page"]

REPOSITORY = Path(__file__).parents[2]
MODULES = (
    *("api", "files", "input", "methods", "natskit", "rpc", "site", "stream", "terminal", "watch", "apart"),
    *("document", "document-compare", "document-keep", "document-update", "presence", "shared-document"),
)
CHECK = (
    *("--noEmit", "--strict", "--target", "es2022", "--lib", "esnext,dom"),
    *("--module", "esnext", "--moduleResolution", "bundler"),
)
BUNDLE = ("--bundle", "--format=esm", "--log-level=warning")
TEN_LINES = """\
import { connect, signIn, type Result } from "@natskit/client";

export async function main(email: string, password: string, show: (...words: unknown[]) => void): Promise<Result> {
  const client = await connect(await signIn(email, password));
  const [project] = await client.listProjects();
  const run = client.exec(project.project_id, { command: "echo from the tarball; exit 3" });
  for await (const { stream, data } of run) show(stream, new TextDecoder().decode(data));
  await client.close();
  return await run.done;
}
"""


def with_tools(command: str, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a shell command that finds Node.js, npm and the tools of ``web/``."""
    script = f'. scripts/node && PATH="$PWD/web/node_modules/.bin:$PATH" && cd "$1" && shift && {command} "$@"'
    return subprocess.run(
        ["bash", "-euc", script, "bash", str(folder), *words],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def tarball(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (REPOSITORY / "web" / "node_modules" / ".tools").exists():
        subprocess.run([REPOSITORY / "scripts" / "web-tools"], check=True, capture_output=True)
    folder = tmp_path_factory.mktemp("packed")
    packed = with_tools("npm pack --silent --pack-destination", str(folder), folder=REPOSITORY / "web" / "client")
    assert packed.returncode == 0, packed.stderr
    (found,) = folder.iterdir()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tarball: Path) -> Path:
    """A folder with only the installed package."""
    folder = tmp_path_factory.mktemp("installed")
    (folder / "package.json").write_text('{"private": true, "type": "module"}')
    install = "mirrored npm install --silent --prefer-offline --no-audit --no-fund"
    installed = with_tools(install, str(tarball), folder=folder)
    assert installed.returncode == 0, installed.stdout + installed.stderr
    return folder


def test_the_tarball_holds_the_module_and_nothing_else(tarball: Path) -> None:
    with tarfile.open(tarball) as packed:
        names = {name.removeprefix("package/") for name in packed.getnames()}
    modules = {f"src/{name}.js" for name in MODULES} | {f"types/{name}.d.ts" for name in MODULES}
    assert names == {"LICENSE", "README.md", "package.json"} | modules


def test_nothing_that_users_see_is_of_the_type_any(folder: Path) -> None:
    """The package exports only ``natskit.js``, which passes on everything from the others except the readers in
    ``rpc.js``."""
    for name in ("api", "files", "natskit", "site", "stream"):
        declared = (folder / "node_modules" / "@natskit" / "client" / "types" / f"{name}.d.ts").read_text()
        code = re.sub(r"/\*.*?\*/", "", declared, flags=re.DOTALL)
        assert "export" in code
        assert re.findall(r".*\bany\b.*", code) == []


def test_the_types_find_mistakes(folder: Path) -> None:
    lines = (
        ('import type { Client } from "@natskit/client";', None),
        ('import { readResponse } from "@natskit/client";', "TS2305"),
        ('import { result } from "@natskit/client/src/rpc.js";', "TS2307"),
        ("declare const client: Client;", None),
        ('const name: number = (await client.callHub("whoami")).email;', "TS2322"),
        ('(await client.callHub("invented")).total;', "TS2571"),
        ('(await client.callProject("p", "read_text_file", { path: "x" })).content;', "TS2339"),
        ('client.exec("p", { comand: "make" });', "TS2561"),
        ("(await client.listProjects())[0].state === 'broken';", "TS2367"),
        ("client.nats.publish(1);", "TS2345"),
        ('const total: number = (await client.callHub<{ total: number }[]>("list_invoices"))[0].total;', None),
        ("export {};", None),
    )
    (folder / "mistakes.ts").write_text("".join(f"{line}\n" for line, _ in lines))
    checked = with_tools("tsc", *CHECK, "mistakes.ts", folder=folder)
    found = re.findall(r"mistakes\.ts\((\d+),\d+\): error (TS\d+)", checked.stdout)
    assert found == [(str(number), error) for number, (_, error) in enumerate(lines, 1) if error], checked.stdout


def readme_example(folder: Path) -> str:
    """The example of the package's README, as a program that takes an account."""
    text = (folder / "node_modules" / "@natskit" / "client" / "README.md").read_text()
    found = re.search(r"```js\n(import .*?)\n\n(.*?)```", text, re.DOTALL)
    assert found is not None
    imports, body = found.groups()
    for said, meant in (
        ('"ada@example.org"', "email"),
        ('"make test"', '"echo from the README"'),
        ("console.log", "show"),
    ):
        assert said in body
        body = body.replace(said, meant)
    arguments = "email: string, password: string, show: (...words: unknown[]) => void"
    return f"{imports}\n\nexport async function main({arguments}) {{\n{body}\nawait client.close();\n}}\n"


def run_program(
    folder: Path, program: str, page: Page, context: BrowserContext, site: Site, world: World
) -> tuple[list[list[str]], Any]:
    """Type-check and bundle a program, and call its ``main`` in a page of the site. Returns its output and result."""
    source = folder / "program.ts"
    source.write_text(program)
    checked = with_tools("tsc", *CHECK, source.name, folder=folder)
    assert checked.returncode == 0, checked.stdout
    bundled = with_tools("esbuild", *BUNDLE, source.name, "--outfile=program.js", folder=folder)
    assert bundled.returncode == 0, bundled.stderr
    script = (folder / "program.js").read_text()
    context.route("**/program.js", lambda route: route.fulfill(body=script, content_type="text/javascript"))
    page.goto(site.url)
    shown, result = page.evaluate(
        """async ([email, password]) => {
            const { main } = await import("/program.js");
            const shown = [];
            const result = await main(email, password, (...words) => shown.push(words));
            return [shown, result];
        }""",
        [world.email_a, world.password],
    )
    return shown, result


def test_ten_lines_of_typescript_run_in_chromium(
    folder: Path, page: Page, context: BrowserContext, site: Site, world: World
) -> None:
    assert TEN_LINES.count("\n") <= 11
    shown, result = run_program(folder, TEN_LINES, page, context, site, world)
    assert shown == [["stdout", "from the tarball\n"]]
    assert result == {"exit_code": 3, "signal": None, "signal_number": None, "timed_out": False, "cancelled": False}


FILES = """\
import { connect, signIn } from "@natskit/client";

export async function main(email: string, password: string, show: (...words: unknown[]) => void) {
  const client = await connect(await signIn(email, password));
  const [project] = await client.listProjects();
  if (!project) throw new Error("no project");
  const files = client.files(project.project_id);
  const random = new Uint8Array(SIZE);
  for (let begin = 0; begin < SIZE; begin += 65536) crypto.getRandomValues(random.subarray(begin, begin + 65536));
  let last = [0, 0];
  const onProgress = (done: number, size: number) => {
    last = [done, size];
  };
  const version = await files.upload(new Blob([random]), "from a page", { onProgress });
  show("up", version, ...last);
  const blob = await files.download("from a page", { onProgress });
  const digest = await crypto.subtle.digest("SHA-256", await blob.arrayBuffer());
  show("down", [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join(""), ...last);
  for await (const { data } of files.read("from a page", { offset: 10, size: 3 })) {
    show("part", data.every((byte, index) => byte === random[10 + index]), data.length);
  }
  const stop = new AbortController();
  const ended = { signal: stop.signal, onProgress: () => stop.abort() };
  const broken = files.upload(new Blob([random]), "broken SIZE", ended);
  show("ended", await broken.catch((error: Error) => error.name));
  const { entries } = await client.callProject(project.project_id, "list_directory_page", { path: "." });
  show("left", entries.filter(({ name }) => name === "broken SIZE" || name.startsWith(".natskit-")).length);
  await client.callProject(project.project_id, "remove", { path: "from a page" });
  await client.close();
}
"""


@pytest.mark.parametrize("size", [5, 9_000_000])
def test_files_go_up_and_down_in_chromium(
    folder: Path, page: Page, context: BrowserContext, site: Site, world: World, size: int
) -> None:
    program = FILES.replace("SIZE", str(size))
    shown: list[Any] = list(run_program(folder, program, page, context, site, world)[0])
    (up, version, *sent), (down, digest, *got), part, ended, left = shown
    assert (up, down) == ("up", "down")
    assert version == digest
    assert sent == got == [size, size]
    if size > 100_000:
        assert part == ["part", True, 3]
        assert ended == ["ended", "AbortError"]
    assert left == ["left", 0] or size == 5


def test_the_example_of_the_readme_runs_in_chromium(
    folder: Path, page: Page, context: BrowserContext, site: Site, world: World
) -> None:
    shown, _ = run_program(folder, readme_example(folder), page, context, site, world)
    assert shown == [["stdout", "from the README\n"], ["exit code", 0]]
