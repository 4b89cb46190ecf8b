"""The documentation's examples run as they stand, page by page: Python, configurations, and `sh` blocks of commands.

What stands in `console` blocks is for reading: it needs data sets, or an installation.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from runs import cli

DOCS = Path(__file__).parent.parent / "docs"
BLOCK = re.compile(r"^```(python|sh|toml)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SHORTER = {  # what a reader does in three minutes, in some seconds
    "tutorial.md": {
        '(("train", 300), ("test", 60))': '(("train", 20), ("test", 8))',
        'name = "4c3f"\noptions = { init = "orthogonal" }': 'name = "mlp"\noptions = { widths = [16] }',
        "epochs = 20": "epochs = 2",
        "eval_every = 5": "eval_every = 1",
        "--method smallgain": "--method smallgain --seconds 1",
        "--attacks pgd,ddn": "--attacks pgd,ddn --steps 20",
        "-o shapes.html": "-o shapes.html --no-bounds",
    }
}
PAGES = [page.name for page in sorted(DOCS.glob("*.md")) if BLOCK.search(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (DOCS / name).read_text(encoding="utf-8")
    for long, short in SHORTER.get(name, {}).items():
        assert long in text
        text = text.replace(long, short)
    monkeypatch.chdir(tmp_path)
    known: dict[str, Any] = {"__name__": "docs"}
    for block in BLOCK.finditer(text):
        kind, source = block.groups()
        if kind == "python":
            exec(compile(source, f"{name}, line {text[: block.start()].count(chr(10)) + 2}", "exec"), known)
        elif kind == "toml":
            file = re.findall(r"`(\S+\.toml)`", text[: block.start()])[-1]
            (tmp_path / file).write_text(source, encoding="utf-8")
        else:
            _run(source)


def _run(source: str) -> None:
    for line in source.splitlines():
        program, *arguments = shlex.split(line, comments=True)
        assert program == "lipcert", line
        done = cli(*arguments)
        assert done.exit_code == 0, f"{line}\n{done.stderr}"


def test_every_page_is_in_the_contents() -> None:
    listed = re.findall(r"^([\w/-]+)$", (DOCS / "index.md").read_text(encoding="utf-8"), re.MULTILINE)
    pages = {page.stem for page in DOCS.glob("*.md")} - {"index"}
    assert pages <= set(listed)


def test_commands_that_are_shown_exist() -> None:
    """Subcommands and options in `console` blocks, and in the README."""
    from lipcert_cli import COMMANDS

    pages = [*DOCS.glob("*.md"), DOCS.parent / "README.md"]
    fenced = re.compile(r"^```(?:console|sh)\n(.*?)^```", re.DOTALL | re.MULTILINE)
    lines = "\n".join(block for page in pages for block in fenced.findall(page.read_text(encoding="utf-8")))
    shown = re.findall(r"(?:^\$ |^|-- |no_python )lipcert ([a-z]+)(.*)", lines, re.MULTILINE)
    assert len(shown) > 40
    for command, rest in shown:
        assert command in COMMANDS, command
        usage = cli(command, "--help", COLUMNS="200").stdout
        for option in re.findall(r"(?<=\s)--[a-z-]+", rest.split("#")[0]):
            assert option in usage, f"{command} {option}"
