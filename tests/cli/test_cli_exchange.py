"""ONNX files and files of weights on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from lipcert.models import build
from runs import LOSSES, SMALL, TINY, cli, parsed

pytest.importorskip("onnx")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits"
    assert cli("train", "digits-mlp-crm", *TINY, *SMALL, LOSSES["ce"], "--out", out, "--quiet").exit_code == 0
    return out


@pytest.fixture(scope="module")
def file(run: Path) -> Path:
    path = run.parent / "digits.onnx"
    result = cli("export", run, path)
    assert result.exit_code == 0, result.stderr
    assert "read back and compared" in result.stdout
    return path


def test_the_same_bound(run: Path, file: Path) -> None:
    values = [parsed("bound", source) for source in (run, file)]
    for a, b in zip(*values, strict=True):
        assert b["value"] == pytest.approx(a["value"], rel=1e-6)


def test_the_same_certified_accuracy(run: Path, file: Path) -> None:
    own = json.loads(cli("certify", run, "-e", "0.05", "--json").stdout)
    result = cli("certify", file, "--dataset", "digits", "-e", "0.05", "--json")
    assert result.exit_code == 0, result.stderr
    other = json.loads(result.stdout)
    assert other["run"] == str(file)
    assert other["clean_accuracy"] == own["clean_accuracy"]
    assert other["accuracy_at"]["0.05"] == pytest.approx(own["accuracy_at"]["0.05"], abs=0.01)


def test_exported_for_torch(run: Path, tmp_path: Path) -> None:
    assert cli("export", run, tmp_path / "digits.pt2").exit_code == 0
    module = torch.export.load(tmp_path / "digits.pt2").module()
    assert module(torch.rand(3, 1, 8, 8)).shape == (3, 10)


def test_a_folded_run(run: Path, tmp_path: Path) -> None:
    layers, own, folded, claims = (tmp_path / n for n in ("layers", "own", "folded", "claims.json"))
    model = 'model={name="lipres-s",options={widths=[4,6,8],hidden=16,head="pairwise"}}'
    short = ["train.epochs=1", "train.batch_size=512", LOSSES["ce"]]
    assert cli("train", "digits-mlp-crm", model, *short, "--out", layers, "--quiet").exit_code == 0
    refused = cli("certify", layers, "-e", "0.1", "--first", "20")
    assert refused.exit_code == 1
    assert "lipcert fold" in refused.stderr
    result = cli("fold", layers, folded)
    assert result.exit_code == 0, result.stderr
    assert cli("certify", folded, "-e", "0.1", "--first", "20", "--save", claims).exit_code == 0
    assert cli("verify", claims, folded).exit_code == 0
    for arguments, said in (
        (["fold", folded, own], "folded already"),
        (["fold", layers, folded], "holds a run already. Choose another folder"),
        (["fold", own, folded], "there is no"),
        (["fold", layers, layers / "folded"], "outside of"),
        (["fold", layers, tmp_path / "o.onnx"], "lipcert export"),
        (["fold", run, own], "nothing to fold"),
        (["train", "--resume", "--out", folded], "not for training"),
    ):
        refused = cli(*arguments)
        assert refused.exit_code == 1
        assert said in " ".join(refused.stderr.split())


def test_weights_of_torch(tmp_path: Path) -> None:
    torch.manual_seed(5)
    torch.save(build("mlp", input_shape=(6,), num_classes=3, widths=[4]).state_dict(), tmp_path / "w.pt")
    said = cli("bound", "--model", "mlp", "--input", "6", "--classes", "3", "--weights", tmp_path / "w.pt")
    assert said.exit_code == 1
    assert "do not fit the module" in said.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["certify", "{file}"], "give --dataset"),
        (["certify", "{file}", "--dataset", "mnist"], "MNIST"),
        (["certify", "{file}", "--dataset", "digits", "--save", "{run}.json"], "goes with a run"),
        (["certify", "{run}", "--dataset", "digits"], "a run knows its data"),
        (["bound", "{file}", "--input", "3"], "knows its own"),
        (["bound", "{run}/none.onnx"], "there is no file"),
        (["export", "{run}", "{run}.txt"], "must end in"),
        (["export", "{run}", "{run}/no/net.onnx"], "no folder"),
    ],
)
def test_refusals(arguments: list[str], said: str, run: Path, file: Path) -> None:
    result = cli(*(a.format(file=file, run=run) for a in arguments))
    assert result.exit_code == 1
    assert said in " ".join(result.stderr.split())
