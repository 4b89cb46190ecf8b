"""The command in a process of its own: streams, encodings, narrow terminals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from runs import ENVIRONMENT, SMALL, TINY, shell

NAME = "läufe und [mehr]/erster"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained in a folder with spaces and more in its name, into a pipe."""
    out = tmp_path_factory.mktemp("process") / NAME
    done = shell(["train", "digits-mlp-crm", *TINY, *SMALL, "train.epochs=2", "--out", out])
    assert done.returncode == 0, done.stderr
    for text in (done.stdout, done.stderr):
        assert not any(ord(c) < 32 and c != "\n" for c in text)
    epochs = [line for line in done.stderr.splitlines() if line.startswith("epoch ")]
    assert len(epochs) == 2
    assert all(line.endswith(" s") for line in epochs)
    assert f"lipcert certify '{out}'" in done.stdout
    return out


def test_narrow_terminals_without_unicode_lose_nothing_else(run: Path) -> None:
    console = {"COLUMNS": "24", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = shell(["bound", run, "--scope", "class", "--guarantee", "upper"], **console)
    assert done.returncode == 0, done.stderr
    title, *table, proof = done.stdout.splitlines()
    assert title == "?2 Lipschitz constant, class"
    assert proof == "Upper bounds for the network in real arithmetic: proved."
    words = "".join("".join(table).split())
    assert words.count("?") == 4  # ≤ and the … between two bounds; no column was cut short
    assert words.count("%") == 2


def test_errors_of_a_process(run: Path) -> None:
    done = shell(["certify", run / "nothing [/x]", "--json"])
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"error: there is no run in {run / 'nothing [/x]'}: ")
    assert done.stderr.count("\n") == 1


def test_saving_to_where_the_results_go(run: Path, tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as out:
        command = [sys.executable, "-m", "lipcert", "certify", run, "--save", tmp_path / "out"]
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, env=ENVIRONMENT, check=False)
    assert done.returncode == 1
    assert b"is where the results are printed" in done.stderr


def test_a_reader_that_leaves(run: Path) -> None:
    command = [sys.executable, "-m", "lipcert", "datasets"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        said = child.stderr.read()
    assert b"Traceback" not in said
