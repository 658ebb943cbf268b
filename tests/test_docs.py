"""What the documents tell users to type exists, and so do the commands behind the figures."""

import ast
import importlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfvgen_planner.cli.main import build_parser
from sfvgen_planner.memory.loop_recipe import LoopRecipe

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "sfvgen_planner/checkpoints").glob("*/README.md"),
]
RECIPES = (ROOT / "recipes").glob("*.yaml")
RESULTS = (ROOT / "results").glob("*.json")
_PROGRAM = re.compile(r"^(?:#|    )? *(?:accelerate launch .*-m sfvgen_planner|sfvgen) (.*)$")


def lines(path: Path) -> list[str]:
    """With what a backslash splits in one line, in comments too."""
    return re.sub(r" *\\\n[# ]*", " ", path.read_text()).splitlines()


def commands() -> Iterator[tuple[str, str]]:
    """File and what follows `sfvgen` in it, each once."""
    for path in (*DOCUMENTS, *RECIPES):
        for line in lines(path):
            # A sentence may begin with the name; a command is set apart from the text.
            if (found := _PROGRAM.match(line)) and line[:1] in "# ":
                yield path.name, found[1]
    for path in RESULTS:
        for row in json.loads(path.read_text())["figures"]:
            if found := _PROGRAM.match(row["command"]):
                yield path.name, found[1]


@pytest.mark.parametrize(("file", "arguments"), sorted(set(commands())))
def test_documented_commands_are_understood(file: str, arguments: str) -> None:
    assert build_parser().parse_args(shlex.split(arguments, comments=True)).run


def python_blocks(*documents: Path) -> Iterator[tuple[str, str]]:
    """File and code of each example."""
    for path in documents:
        for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL):
            yield path.name, block


@pytest.mark.parametrize(("file", "block"), list(python_blocks(*DOCUMENTS)))
def test_documented_imports_are_there(file: str, block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(str(node.module))
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert not missing, f"{node.module} has no {', '.join(missing)}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documented_names_are_defined(path: Path) -> None:
    """Each in its block or in an earlier one of the same document."""
    code = "\n".join(block for _, block in python_blocks(path))
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "-"]
    found = subprocess.run(ruff, input=code, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


def test_documented_files_are_there() -> None:
    for path in DOCUMENTS:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
            if "://" not in link:
                assert (path.parent / link).exists(), f"{path.name} links to {link}"


def test_documented_loops_make_a_recipe() -> None:
    loops = {text for _, text in commands() if text.startswith(("loop ", "online "))}
    assert loops
    for text in sorted(loops):
        args = build_parser().parse_args(shlex.split(text, comments=True))
        LoopRecipe.load(ROOT / args.recipe, args.set)


def test_documented_changes_of_a_loops_recipe_make_a_recipe() -> None:
    changes = re.findall(r"`--set (variant=[^`]*)`", (ROOT / "docs/training.md").read_text())
    assert changes
    for change in changes:
        LoopRecipe.load(ROOT / "recipes/tabletop_memory_short.yaml", change.split())
