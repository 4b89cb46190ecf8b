"""The models that come with lipcert: each is what its certificate says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lipcert
from lipcert import zoo
from lipcert.certify import read_certificate, verify
from lipcert.certify.claimed import Claimed
from lipcert.data import load
from lipcert.errors import CheckpointError
from lipcert.train import load_config
from runs import cli, parsed

NAMES = zoo.available()


def test_they_are_small() -> None:
    assert sum(f.stat().st_size for f in Path(zoo.__file__).parent.rglob("*") if f.is_file()) < 20 * 2**20


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_the_one_that_was_certified(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, graph, and what the stated norms make of them; whether these are true, `lipcert verify` looks at."""
    monkeypatch.setattr(Claimed, "below", lambda self: None)
    folder, net = zoo.folder(name), lipcert.load(name)
    assert not net.training
    c = read_certificate(zoo.certificate(name))
    report = verify(c, net, norms="none")
    assert report.accepted, [check for check in report.checks if check.status == "failed"]
    assert {"weights", "graph", "bound", "sums"} <= {check.name for check in report.checks if check.status == "passed"}
    assert c.data.name == folder.config().data.name
    assert c.data.split == "test"
    assert {v.epsilon for v in c.certified} >= set(folder.config().train.eval_epsilons)
    net(torch.rand(2, *c.input.shape))


@pytest.mark.parametrize("name", [n for n in NAMES if zoo.folder(n).config().data.name == "digits"])
def test_certified_again(name: str) -> None:
    """All of it, from nothing: where the data is at hand."""
    c, data = read_certificate(zoo.certificate(name)), load("digits", "test")
    x = data.images.float() / 255
    found = lipcert.certify(lipcert.load(name), x, data.labels, method="smallgain", scaling="neuron")
    assert isinstance(found, lipcert.CertifiedRadii)
    assert found.clean_accuracy == c.clean.share
    for v in c.certified:
        assert found.certified_accuracy(v.epsilon) == pytest.approx(v.share, abs=0.01)
    assert cli("verify", name, name).exit_code == 0


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("mnist-4c3f-crm", "mnist-4c3f-half-abs-further"),
        ("cifar10-6c2f-crm", "cifar10-6c2f-half-abs-further"),
        ("cifar10-lipres-s-crm", "cifar10-lipres-s-half-abs-further"),
    ],
)
def test_a_model_is_of_the_recipe_that_is_published(name: str, recipe: str) -> None:
    found, wanted = (c.to_dict() for c in (zoo.folder(name).config(), load_config(recipe)))
    for c in (found, wanted):
        for made in ("folded", "terms"):
            c["model"]["options"].pop(made, None)
        del c["name"], c["data"]["name"], c["train"]["precision"]  # float32 where bfloat16 is emulated
    assert found == wanted


def test_a_name_stands_for_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = parsed("zoo")
    assert sorted(shown) == sorted(NAMES)
    assert shown["digits-mlp-crm"]["certified"] == pytest.approx({"0.25": 0.872, "0.5": 0.689, "0.75": 0.406}, abs=0.01)
    assert "digits-mlp-crm" in cli("zoo").stdout
    assert parsed("bound", "digits-mlp-crm")[0]["value"] > 0
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits-mlp-crm").mkdir()  # a folder of one's own comes first
    assert "there is no run" in cli("certify", "digits-mlp-crm").stderr


def test_a_name_that_is_none() -> None:
    with pytest.raises(CheckpointError, match="did you mean 'digits-mlp-crm'"):
        lipcert.load("digits-mpl-crm")


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_trained_again(name: str) -> None:
    config = zoo.folder(name).config()
    assert load_config(zoo.folder(name).config_file) == config
