"""What a deploy is spared: roles/lean_pyinfra.py and imports. Each piece is spared, and what pyinfra makes of the rest
stays the same."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

from tests.kit.commands import run
from tests.platform.site import REPOSITORY

# A process of its own, in which nothing has imported the module yet.
PROGRAM = """
import importlib, inspect, json, typing
from types import SimpleNamespace

import pyinfra
from pyinfra.api import arguments, util

asked_for_source, evaluated = [], []

def noting(notes, real):
    def call(*words, **options):
        notes.append(1)
        return real(*words, **options)
    return call

def role(state):
    return util.get_operation_order_from_stack(state)

known = {
    "stack": util.stack is inspect.stack,
    "getframeinfo": util.getframeinfo is inspect.getframeinfo,
    "get_type_hints": arguments.get_type_hints is typing.get_type_hints,
}
pyinfra.is_cli = True
state = SimpleNamespace(current_deploy_filename=__file__, current_op_file_number=7)
found = []
inspect.findsource = noting(asked_for_source, inspect.findsource)
for spared in (False, True):
    if spared:
        importlib.import_module("roles.lean_pyinfra")
    asked_for_source.clear()
    order = role(state)
    own = arguments.all_global_arguments()
    typing.ForwardRef._evaluate = noting(evaluated, typing.ForwardRef._evaluate)
    evaluated.clear()
    again = arguments.all_global_arguments()
    types = [[name, str(kind)] for name, kind in own]
    found.append([order, types, own == again, len(asked_for_source), len(evaluated)])
print(json.dumps([known, found]))
"""


def test_what_is_spared_and_what_stays(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = run([sys.executable, str(program)], env={"PYTHONPATH": str(REPOSITORY)}, cwd=tmp_path)
    known, ((order, arguments, same, sources, evaluated), lean) = json.loads(done.stdout)
    assert known == dict.fromkeys(known, True), "this pyinfra calls something else: see roles/lean_pyinfra.py"
    assert order[0] == 7
    assert len(order) >= 3
    assert len(arguments) > 20
    assert same
    assert sources > 0
    assert evaluated > 0, "this pyinfra spares it: see roles/lean_pyinfra.py"
    assert lean == [order, arguments, True, 0, 0]


def test_a_deploy_is_spared_it_and_aiohttp() -> None:
    """The test checks all modules that deploy.py imports."""
    story = ast.parse((REPOSITORY / "deploy.py").read_text()).body
    imports = "\n".join(ast.unparse(line) for line in story if isinstance(line, ast.Import | ast.ImportFrom))
    program = f"{imports}\nprint('roles.lean_pyinfra' in sys.modules, 'nats' in sys.modules, 'aiohttp' in sys.modules)"
    assert run([sys.executable, "-c", program], cwd=REPOSITORY).stdout == "True True False\n"
