"""Options and their choices, help texts, and the lists of what there is."""

from __future__ import annotations

import math
from enum import Enum
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

import lipcert
from lipcert import data, models
from lipcert.bounds.lipschitz import DENSE_LIMIT, FAILURE, SCALINGS, SLACK
from lipcert.bounds.result import AnyMethod, Guarantee, Scope
from lipcert.cli.common import command, emit, find_device, parse_epsilon
from lipcert.cli.options import GuaranteeName, MethodName, ScalingName, ScopeName
from lipcert.errors import ConfigError
from lipcert.train import available_configs, load_config
from runs import cli, parsed

COMMANDS = ["train", "certify", "verify", "bound", "models", "datasets", "configs", "demo"]


CHOICES = [(MethodName, AnyMethod), (ScopeName, Scope), (GuaranteeName, Guarantee)]


@pytest.mark.parametrize(("names", "literal"), CHOICES)
def test_choices_are_the_library_s(names: type[Enum], literal: Any) -> None:
    assert sorted(choice.value for choice in names) == sorted(get_args(literal))


def test_scalings_are_the_library_s() -> None:
    assert [choice.value for choice in ScalingName] == list(SCALINGS)


def test_help() -> None:
    for arguments in (["--help"], []):
        result = cli(*arguments)
        assert result.exit_code == (0 if arguments else 2)
        shown = result.stdout + result.stderr
        assert all(f" {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command(name: str) -> None:
    result = cli(name, "--help", TERMINAL_WIDTH="100")
    assert result.exit_code == 0
    assert f"Usage: lipcert {name}" in result.stdout or f" {name} [OPTIONS]" in result.stdout
    if name in ("train", "certify", "verify", "bound"):  # each example on a line of its own
        examples = [line for line in result.stdout.splitlines() if f"• lipcert {name} " in line]
        assert len(examples) >= 2


@pytest.mark.parametrize("name", ["certify", "bound"])
def test_help_of_upper_bounds(name: str) -> None:
    shown = cli(name, "--help", TERMINAL_WIDTH="100").stdout
    for option in ("--dense-limit", "--failure", "--slack"):
        assert f" {option} " in shown
    assert DENSE_LIMIT is None
    for default in ("(2048, or 16384 with --failure 0)", FAILURE, SLACK):
        assert f"[default: {default}]" in " ".join(shown.replace("│", " ").split())


def test_version() -> None:
    assert cli("--version").stdout == f"lipcert {lipcert.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["trian"],
        ["train", "digits-mlp-crm"],
        ["certify"],
        ["certify", "run", "--method", "crm"],
        ["certify", "run", "--guarantee", "maybe"],
        ["bound", "run", "--scope", "each"],
        ["bound", "run", "--dense-limit", "0"],
        ["bound", "--model", "mlp", "--input", "4", "--classes", "1"],
        ["demo", "--epochs", "0"],
        ["demo", "--out", ""],
        ["train", "digits-mlp-crm", "--out", ""],
    ],
)
def test_wrong_usage(arguments: list[str]) -> None:
    result = cli(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Usage: " in result.stderr
    assert "Error" in result.stderr


@pytest.mark.parametrize(
    ("text", "value"),
    [("36/255", 36 / 255), ("0.5", 0.5), ("0", 0.0), ("1e-3", 0.001), (" 1 / 2 ", 0.5), ("108/255", 108 / 255)],
)
def test_radii(text: str, value: float) -> None:
    assert parse_epsilon(text) == value


WRONG = ["", "/", "36/", "/255", "1/2/3", "half", "1/0", "-1", "-1/2", "nan", "inf", "0,5"]


@pytest.mark.parametrize("text", [*WRONG, "1e400", "1/1e-400", "1e999999999"])
def test_what_is_no_radius(text: str) -> None:
    with pytest.raises(ConfigError, match="a radius"):
        parse_epsilon(text)


def test_devices() -> None:
    assert find_device("cpu") == torch.device("cpu")
    assert find_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("banana", "", "meta", "cuda:99", "cpu:x"):
        if name:
            with pytest.raises(ConfigError, match=r"--device is cpu, cuda or cuda:N; got '.*'. Here torch finds"):
                find_device(name)


def test_commands_can_be_copied() -> None:
    assert command("lipcert", "certify", Path("runs/a")) == "lipcert certify runs/a"
    assert command("lipcert", "certify", Path("my run's")) == """lipcert certify 'my run'"'"'s'"""


def test_json_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    emit({"a": [math.nan, 1.5, (math.inf, -math.inf)], "ü": "ℓ₂", "t": True})
    assert capsys.readouterr().out.replace("\n", "").replace(" ", "") == (
        '{"a":[null,1.5,[null,null]],"\\u00fc":"\\u2113\\u2082","t":true}'
    )


def test_lists() -> None:
    assert parsed("models") == {
        name: {k: list(v) if isinstance(v, tuple) else v for k, v in models.options_of(name).items()}
        for name in models.available()
    }
    assert [d["name"] for d in parsed("datasets")] == [d.name for d in data.available()]
    assert parsed("configs") == {name: load_config(name).to_dict() for name in available_configs()}


def test_lists_for_people(tmp_path: Path) -> None:
    shown = cli("models").stdout
    assert all(name in shown for name in models.available())
    assert "widths=(128, 64)" in shown
    shown = cli("configs", COLUMNS="80").stdout
    assert all(name in shown and load_config(name).data.name in shown for name in available_configs())
    shown = cli("datasets", "--data", tmp_path / "[x]").stdout
    assert shown.startswith(f"Looked for under {tmp_path}/[x] (--data or LIPCERT_DATA).\n")
    assert all(info.layout in shown for info in data.available())
