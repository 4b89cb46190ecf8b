"""A training that begins with the weights of another run, or of a file."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lipcert import zoo
from lipcert.bounds.evidence import Scaling
from lipcert.certify.identity import weights_digest
from lipcert.errors import BoundError, CheckpointError, ConfigError
from lipcert.models import build
from lipcert.train import GainBound, RunFolder, Trainer
from lipcert.train.checkpoint import load_state, save_weights
from runs import BATCHES, STATEFUL, cli, differing, refused, stopped, tiny

SMALLGAIN = 'bound={method="smallgain"}'


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with small gain."""
    out = tmp_path_factory.mktemp("trained") / "first"
    Trainer(tiny(SMALLGAIN, "train.epochs=1"), out).fit()
    return out


def _same(module: nn.Module, folder: RunFolder) -> bool:
    return weights_digest(module) == weights_digest(folder.load_model()[0])


def test_it_begins_with_the_weights_and_says_whose_they_are(trained: Path, tmp_path: Path) -> None:
    folder = RunFolder(trained)
    trainer = Trainer(tiny(*STATEFUL, "seed=7"), tmp_path / "run", start=trained)
    assert _same(trainer.model, folder)
    assert _same(trainer.deployed, folder)
    summary = trainer.fit()
    assert not _same(trainer.model, folder)
    assert summary["start"] == {"source": "first", "weights_sha256": weights_digest(folder.load_model()[0])}
    assert RunFolder(trained).summary()["start"] is None  # type: ignore[index]


@pytest.mark.parametrize("steps", [0, 1, BATCHES + 1])
def test_stopped_anywhere_it_goes_on_with_what_it_has(trained: Path, tmp_path: Path, steps: int) -> None:
    """Even if what it began with is gone by then."""
    config, gone = tiny(*STATEFUL), tmp_path / "first"
    Trainer(config, tmp_path / "whole", start=trained).fit()
    shutil.copytree(trained, gone)
    stopped(config, tmp_path / "stopped", steps, start=gone)
    shutil.rmtree(gone)
    result = cli("train", "--resume", "--out", tmp_path / "stopped")
    assert result.exit_code == 0, result.output
    assert differing(tmp_path / "whole", tmp_path / "stopped") == []


def test_the_weights_are_there_before_the_folder_is_a_run(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in between, it must not go on with fresh ones; after Ctrl-C there nothing is left, and it can be begun."""
    trainer = Trainer(tiny("train.epochs=1"), tmp_path / "run", start=trained)
    weights, file = RunFolder(trained).load_model()[0].state_dict(), tmp_path / "run" / "checkpoint.safetensors"

    def stopped_there(config: Any) -> None:
        state, _ = load_state(file)
        assert state["counters"][:2] == [0, 0]
        assert all(torch.equal(state["model"][name], weights[name]) for name in weights)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer.folder, "begin", stopped_there)
        with pytest.raises(KeyboardInterrupt):
            trainer.fit()
    assert not file.exists()
    assert trainer.fit()["epochs"] == 1


def test_a_small_gain_bound_begins_with_the_weights_d(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = GainBound(RunFolder(trained).load_model()[0], (1, 8, 8)).refresh(40)

    def searched(*_: object) -> Scaling:
        raise AssertionError("a search is made")

    monkeypatch.setattr(GainBound, "_searched", searched)
    trainer = Trainer(tiny(SMALLGAIN), tmp_path / "run", start=trained)
    torch.testing.assert_close(trainer.bound.refresh(40), fresh, rtol=0.02, atol=1e-6)
    torch.testing.assert_close(trainer.evaluation_bound.refresh(40), fresh, rtol=0.02, atol=1e-6)


def test_coarser_weights_d_are_refined_and_finer_ones_left(trained: Path, tmp_path: Path) -> None:
    finer = Trainer(tiny('bound={method="smallgain",scaling="neuron"}'), tmp_path / "finer", start=trained)
    assert isinstance(finer.bound, GainBound)
    assert finer.bound.weights.kind == "neuron"
    coarser = Trainer(tiny('bound={method="smallgain",scaling="layer"}'), tmp_path / "coarser", start=trained)
    assert isinstance(coarser.bound, GainBound)
    assert [d.numel() for d in coarser.bound.weights.weights] == [1]


def test_weights_d_of_another_network_are_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(BoundError, match=r"start is of another network: its weights are of shapes \[\(5,\)\], not"):
        GainBound(net, (3,), start=Scaling("channel", (torch.ones(5, dtype=torch.float64),)))


def test_a_model_that_comes_with_lipcert_and_a_file(tmp_path: Path) -> None:
    arguments = ["train", "digits-mlp-crm", "train.epochs=1", "train.batch_size=512", "optimizer.lr=1e-9", "--out"]
    result = cli(*arguments, tmp_path / "a", "--from", "digits-mlp-crm", "--json")
    assert result.exit_code == 0, result.stderr
    net = zoo.load("digits-mlp-crm")
    assert json.loads(result.stdout)["start"] == {"source": "digits-mlp-crm", "weights_sha256": weights_digest(net)}
    save_weights(tmp_path / "mine.safetensors", net, {})
    other = cli(*arguments, tmp_path / "b", "--from", tmp_path / "mine.safetensors", "--json")
    assert other.exit_code == 0, other.stderr
    assert json.loads(other.stdout)["start"]["source"] == "mine.safetensors"
    for name in ("a", "b"):  # it has hardly moved
        for p, q in zip(RunFolder(tmp_path / name).load_model()[0].parameters(), net.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-6)


@pytest.mark.parametrize("option", ['init="orthogonal"', "terms=16"])
def test_how_fresh_weights_are_drawn_and_how_sums_are_made_does_not_matter(option: str, tmp_path: Path) -> None:
    folder, first = RunFolder(tmp_path / "first"), tiny(f'model={{name="4c3f",options={{{option}}}}}')
    folder.create(first)
    folder.save_model(build("4c3f", input_shape=(1, 8, 8), num_classes=10), first, (1, 8, 8), tuple("0123456789"))
    assert _same(Trainer(tiny('model={name="4c3f"}'), tmp_path / "next", start=folder).model, folder)


OTHERS = {
    "activation": (
        '{name="mlp",options={widths=[16],activation="tanh"}}',
        "model.options.activation: 'relu' there, 'tanh'",
    ),
    "width": ('{name="mlp",options={widths=[12]}}', "model.options.widths: [16] there, [12] here"),
    "normalisation": (
        '{name="mlp",options={widths=[16]},normalize={mean=[0.5],std=[0.5]}}',
        "model.normalize: 'none' there",
    ),
}


@pytest.mark.parametrize("which", list(OTHERS))
@pytest.mark.parametrize("file", [False, True])
def test_another_model_is_refused(trained: Path, tmp_path: Path, which: str, file: bool) -> None:
    """What has the same weights may compute something else."""
    model, said = OTHERS[which]
    start = trained / "model.safetensors" if file else trained
    with pytest.raises(ConfigError, match=rf"the weights of {start.name} are of another model \({re.escape(said)}"):
        Trainer(tiny(f"model={model}"), tmp_path / "run", start=str(start))
    assert not (tmp_path / "run").exists()


def test_what_is_the_default_may_be_written_out(trained: Path, tmp_path: Path) -> None:
    config = tiny('model={name="mlp",options={widths=[16],activation="relu"}}')
    assert _same(Trainer(config, tmp_path / "run", start=trained).model, RunFolder(trained))


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    other = build("mlp", input_shape=(1, 8, 8), num_classes=10, widths=[12])
    save_weights(tmp_path / "other.safetensors", other, {})
    with pytest.raises(CheckpointError, match="other shapes"):
        Trainer(tiny(), tmp_path / "run", start=tmp_path / "other.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="damaged"):
        Trainer(tiny(), tmp_path / "run", start=tmp_path / "damaged.safetensors")


def test_what_it_says_to_a_wrong_start(trained: Path, tmp_path: Path) -> None:
    out = ["--out", tmp_path / "run"]
    assert "there is no trained model in" in refused("train", "digits-mlp-crm", "--from", tmp_path / "none", *out)
    stopped(tiny(), tmp_path / "unfinished", 1)
    assert "is not finished" in refused("train", "digits-mlp-crm", "--from", tmp_path / "unfinished", *out)
    assert "--from is for a new one" in refused("train", "--resume", "--from", trained, *out)
    with pytest.raises(ConfigError, match="start= is for a new run"):
        Trainer(tiny(), tmp_path / "unfinished", start=trained).fit(resume=True)
    assert not (tmp_path / "run").exists()
