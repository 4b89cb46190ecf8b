"""`lipcert certify --save` and `lipcert verify`: accepted, refused, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from certificates import recount, resealed
from lipcert.certify import certify, read_certificate
from lipcert.data import as_float, load
from lipcert.train import RunFolder
from lipcert.train.checkpoint import load_weights
from runs import LOSSES, SMALL, TINY, cli, parsed, refused


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "my [run]"
    result = cli("train", "digits-mlp-crm", *TINY, *SMALL, LOSSES["ce"], "--out", out)
    assert result.exit_code == 0, result.stderr
    return out


@pytest.fixture(scope="module")
def file(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("certificates") / "digits [x].json"
    assert cli("certify", run, "-e", "36/255", "-e", "0.01", "--save", path).exit_code == 0
    return path


def changed(file: Path, folder: Path, change: Any) -> Path:
    """A liar's copy."""
    content = json.loads(file.read_bytes())
    del content["sha256"]
    change(content)
    (folder / "lie.json").write_bytes(resealed(content))
    return folder / "lie.json"


def statuses(document: Any) -> dict[str, str]:
    return {check["name"]: check["status"] for check in document["checks"]}


def test_a_certificate_is_accepted(run: Path, file: Path) -> None:
    c = read_certificate(file)
    assert (c.model.name, c.model.options) == ("mlp", {"widths": [16]})
    assert [a.epsilon for a in c.certified] == [0.01, 36 / 255]
    document = parsed("verify", file, run)
    assert document["accepted"] is True
    assert {n for n, s in statuses(document).items() if s != "passed"} == {"history"}
    assert document["claims"]["data"] == {"name": "digits", "split": "test", "samples": 360, "of": 360}
    assert document["claims"]["accuracy_at"]["0.01"] == c.certified[0].share
    shown = cli("verify", file, run, COLUMNS="200")
    assert shown.exit_code == 0
    for check in document["checks"]:
        assert any(line.startswith(check["name"]) and check["status"] in line for line in shown.stdout.splitlines())
    assert shown.stdout.splitlines()[-1] == "Accepted. Not checked: history."
    assert "Claimed: digits, test, 360 samples: " in shown.stdout


def test_a_certificate_of_execution_in_float64(run: Path, file: Path, tmp_path: Path) -> None:
    """The same weights, converted: radii are what the library says of `model.double()`."""
    wide = tmp_path / "wide.json"
    assert (
        "as float64 executes it (model.double())"
        in cli("certify", run, "--precision", "float64", "--save", wide).stdout
    )
    c, narrow = read_certificate(wide), read_certificate(file)
    assert (c.model.dtype, c.precision.arithmetic) == ("float64", "float64")
    assert c.data == narrow.data
    assert c.model.weights_sha256 != narrow.model.weights_sha256
    test, model = load("digits", "test"), RunFolder(run).load_model()[0].double()
    found = certify(model, as_float(test.images).double(), test.labels)
    assert found.precision == "float64"
    assert list(c.samples.radius) == pytest.approx(found.radius.tolist(), rel=1e-9)
    pairs = list(zip(narrow.samples.radius, c.samples.radius, c.samples.real_radius, strict=True))
    assert all(a <= b <= real for a, b, real in pairs)
    assert any(a < b for a, b, _ in pairs)
    assert parsed("verify", wide, run)["accepted"] is True

    def narrower(c: dict[str, Any]) -> None:
        c["model"]["dtype"] = c["precision"]["arithmetic"] = "float32"

    result = cli("verify", changed(wide, tmp_path, narrower), run, "--no-norms")
    assert result.exit_code == 1
    assert "weights" in result.stdout.splitlines()[-1]


def test_what_need_not_be_checked_is_said(run: Path, file: Path) -> None:
    document = parsed("verify", file, run, "--no-data", "--no-norms")
    assert document["accepted"] is True
    left = [n for n, s in statuses(document).items() if s == "not checked"]
    assert left == ["norms, by another method", "data", "labels", "margins", "radii", "history"]
    shown = cli("verify", file, run, "--no-data", "--no-norms").stdout
    assert shown.splitlines()[-1] == f"Accepted. Not checked: {', '.join(left)}."


def test_a_lie_is_refused(run: Path, file: Path, tmp_path: Path) -> None:
    def larger(c: dict[str, Any]) -> None:
        for column in ("margin", "real_radius", "radius"):
            c["samples"][column] = [2 * v for v in c["samples"][column]]
        recount(c)

    lie = changed(file, tmp_path, larger)
    result = cli("verify", lie, run, "--no-norms")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "Refused: margins, radii."
    document = json.loads(cli("verify", lie, run, "--no-norms", "--json").stdout)
    assert document["accepted"] is False
    assert "has a margin of" in next(c["why"] for c in document["checks"] if c["name"] == "margins")
    assert cli("verify", lie, run, "--no-data", "--no-norms").exit_code == 0  # nobody looked


def test_another_model_is_refused(run: Path, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert cli("train", "digits-mlp-crm", *TINY, *SMALL, "seed=1", "train.epochs=2", "--out", other).exit_code == 0
    result = cli("verify", file, other, "--no-norms")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1] == "Refused: weights."
    folder = RunFolder(other)
    module, header = folder.load_model()
    load_weights(run / "model.safetensors", module)
    with torch.no_grad():
        module.fc1.bias[3] += 1e-6  # type: ignore[union-attr,index]
    folder.save_model(module, folder.config(), tuple(header["input_shape"]), tuple(header["classes"]))
    assert cli("verify", file, other, "--no-norms").stdout.splitlines()[-1] == "Refused: weights."


def test_an_estimate_says_that_it_is_none(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "estimate.json"
    assert cli("certify", run, "--guarantee", "estimate", "--save", path).exit_code == 0
    saved = json.loads(path.read_text())
    assert saved["format"] == "lipcert-estimate"
    assert saved["certified"] is False
    assert len(saved["samples"]["radius"]) == 360
    assert "it holds an estimate, which is not a certificate" in refused("verify", path, run)


def test_names_in_a_certificate_are_only_names(run: Path, file: Path, tmp_path: Path) -> None:
    """None of them is opened, and none is read as markup."""
    for name in ("../../etc/passwd", "folder:/etc", "[red]digits[/red]", "[/]", "/dev/zero"):

        def renamed(c: dict[str, Any], name: str = name) -> None:
            c["data"]["name"] = c["model"]["name"] = name

        result = cli("verify", changed(file, tmp_path, renamed), run, "--no-norms", COLUMNS="300")
        assert result.exit_code == 1
        assert result.stdout.splitlines()[-1] == "Refused: model, data."
        assert f"'{name}'" in result.stdout
    for split in ("[red]test", "../test"):
        lie = changed(file, tmp_path, lambda c, split=split: c["data"].update(split=split))
        assert f"split {split!r} is none of a data set" in refused("verify", lie, run)
        assert cli("verify", lie, run, "--no-norms", "--no-data").exit_code == 0
    lie = changed(file, tmp_path, lambda c: c["data"].update(name="\x1b[2Jdigits"))
    assert "data.name: holds characters that cannot be printed; got '\\x1b[2Jdigits'" in refused("verify", lie, run)
    lie = changed(file, tmp_path, lambda c: c.update({"[red]\x1b[1m": 1}))
    assert "[red]\\x1b[1m: Extra inputs are not permitted" in refused("verify", lie, run)


def test_wrong_use(run: Path, file: Path, tmp_path: Path) -> None:
    assert "there is no file" in refused("verify", tmp_path / "nothing.json", run)
    assert "is not an ordinary file" in refused("verify", tmp_path, run)
    assert "there is no trained model" in refused("verify", file, tmp_path)
    assert "failure is a probability" in refused("verify", file, run, "--failure", "2")
    assert cli("verify", file).exit_code == 2
    (tmp_path / "cut.json").write_bytes(file.read_bytes()[:1000])
    assert "not JSON" in refused("verify", tmp_path / "cut.json", run)


def test_where_the_data_lies(run: Path, file: Path, tmp_path: Path) -> None:
    """The run says which data set it is."""
    assert cli("verify", file, run, tmp_path, "--no-norms").exit_code == 0  # digits need no folder
    assert load("digits", "test").fingerprint == read_certificate(file).data.sha256
