"""How the command begins: quickly, with its help, and without what it does not need; `lipcert doctor`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

import lipcert
import lipcert.cli.doctor as module
from lipcert_cli import COMMANDS, app, function_of
from runs import ENVIRONMENT, cli, parsed

_OPTIONAL = ("foolbox", "pyautoattack", "matplotlib", "sklearn", "onnx", "tensorboardX", "wandb", "cvxpy", "scipy")
_RUN = """
import sys, json
sys.argv = ["lipcert", *json.loads(sys.argv[1])]
try:
    import lipcert_cli
    lipcert_cli.run()
except SystemExit as end:
    code = end.code
print()
print(json.dumps([code, sorted({m.split(".")[0] for m in sys.modules})]))
"""


def _imported(*arguments: str) -> set[str]:
    """The top-level modules that a command has imported at its end."""
    command = [sys.executable, "-c", _RUN, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", env=ENVIRONMENT, check=True)
    code, found = json.loads(done.stdout.splitlines()[-1])
    assert code in (0, None), done.stderr
    return set(found)


@pytest.mark.parametrize("arguments", [("--help",), ("--version",)])
def test_help_does_not_wait_for_torch(arguments: tuple[str, ...]) -> None:
    assert not _imported(*arguments) & {"torch", "numpy", "lipcert", "pydantic"}


@pytest.mark.parametrize(
    "arguments", [("models",), ("attack", "--help"), ("report", "--help"), ("doctor", "--no-data-sets")]
)
def test_no_extra_is_imported_before_it_is_needed(arguments: tuple[str, ...]) -> None:
    assert not _imported(*arguments) & set(_OPTIONAL)


@pytest.mark.parametrize("name", COMMANDS)
def test_summaries_are_those_of_the_commands(name: str) -> None:
    text = function_of(name).__doc__
    assert text is not None
    assert text.splitlines()[0] == COMMANDS[name]
    shown = CliRunner().invoke(app, [name, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert shown.exit_code == 0
    assert " ".join(COMMANDS[name].replace("`", "").split()[:6]) in " ".join(shown.output.split())


def test_a_typing_error_is_met_with_a_suggestion() -> None:
    shown = CliRunner().invoke(app, ["atack"])
    assert shown.exit_code == 2
    assert "Did you mean 'attack'?" in shown.output


def test_the_version_is_the_librarys() -> None:
    assert cli("--version").stdout == f"lipcert {lipcert.__version__}\n"


# --- doctor ---------------------------------------------------------------------------------------------------------
def test_doctor() -> None:
    found = parsed("doctor", "--data", "nowhere")
    assert found["torch"] == str(torch.__version__)
    assert found["data"]["found"]["digits"] == "360 test images"
    assert "MNIST is not in" in found["data"]["found"]["mnist"]
    shown = cli("doctor", "--no-data-sets")
    assert shown.exit_code == 0
    assert "lipcert[attacks]" in shown.stdout
    assert "mnist" not in shown.stdout


def test_doctor_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_installed", lambda name: None)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 999)
    advice = parsed("doctor", "--no-data-sets")["advice"]
    assert "OMP_NUM_THREADS" in advice[0]
    assert "pip install 'lipcert[attacks]'" in " ".join(advice)
