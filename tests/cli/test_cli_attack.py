"""`lipcert attack`: what it says, where it goes on, and what happens when a certificate lies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

import lipcert.cli.attack as module
from lipcert import zoo
from lipcert.attacks import read_attacked
from lipcert.certify import read_certificate
from lipcert.certify.canonical import canonical
from lipcert.errors import CheckpointError
from lipcert.train import Interrupted
from runs import cli, parsed, refused

pytest.importorskip("foolbox")
pytest.importorskip("pyautoattack")

NAME = "digits-mlp-crm"
QUICK = ("--first", "60", "--attacks", "pgd,ddn", "--steps", "40")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(zoo.folder(NAME).path, tmp_path / "my run"))


def test_beside_its_certificate(run: Path) -> None:
    shown = cli("attack", run, *QUICK)
    assert shown.exit_code == 0, shown.stderr
    assert "digits, test: the first 60 of 360 samples" in shown.stdout
    assert "No adversarial example inside of a certified radius. The nearest is 1.0" in shown.stdout
    assert shown.stderr == ""
    found = parsed("attack", run, *QUICK)  # all of it is in the file
    certified = read_certificate(run / "certificate.json")
    assert list(found["attacked_accuracy_at"]) == [repr(v.epsilon) for v in certified.certified]
    for key, share in found["attacked_accuracy_at"].items():
        assert found["certified_accuracy_at"][key] <= share <= found["clean_accuracy"]
    assert [a["method"] for a in found["attacks"]] == ["pgd", "ddn"]
    assert found["distance_over_radius"]["least"] >= 1
    assert read_attacked(run / "attack.safetensors").about["data"] == "digits"
    assert "another attack" in refused("attack", run, "--first", "50")


def test_every_seventh(run: Path) -> None:
    """A folder of images comes class by class: the first of it are all of one."""
    options = ("--every", "7", "--attacks", "ddn", "--steps", "40")
    shown = cli("attack", run, *options)
    assert shown.exit_code == 0, shown.stderr
    assert "digits, test: one in 7 of 360 samples" in shown.stdout
    stated, found = read_certificate(run / "certificate.json").samples, read_attacked(run / "attack.safetensors")
    assert found.labels.tolist() == list(stated.label[::7])
    assert len(found.labels) == 52
    page = run / "r.html"
    assert cli("report", run, "-o", page, "-o", run / "r.md", "--no-bounds").exit_code == 0
    text = page.read_text()
    assert "of one in 7 of 360 samples" in text
    assert "--every 7" in text
    assert "--first" not in text
    assert "attacked, one in 7 of 360" in (run / "r.md").read_text()
    parts = (stated.radius[::7], stated.prediction[::7], stated.label[::7])
    certified = sum(r > 0.5 and p == y for r, p, y in zip(*parts, strict=True))
    assert parsed("attack", run, *options)["certified_accuracy_at"]["0.5"] == pytest.approx(certified / 52)
    shown = cli("attack", run, *options, "--first", "99", "--save", run / "part.safetensors")
    assert "one in 7 of the first 105 of 360" in shown.stdout
    found.about["every"] = 0
    found.write(run / "wrong.safetensors")
    with pytest.raises(CheckpointError, match="does not fit"):
        read_attacked(run / "wrong.safetensors")


def test_without_a_certificate(run: Path) -> None:
    (run / "certificate.json").unlink()
    shown = cli("attack", run, *QUICK, "-e", "0.5", "--save", run.parent / "a.safetensors")
    assert shown.exit_code == 0
    assert "There is no certificate" in shown.stdout
    assert "certified_accuracy_at" not in parsed(
        "attack", run, *QUICK, "-e", "0.5", "--save", run.parent / "a.safetensors"
    )
    assert not (run / "attack.safetensors").exists()


def _lie(run: Path, factor: float) -> None:
    """Radii that are larger by a factor, in a file of its one form."""
    file = run / "certificate.json"
    content = read_certificate(file).model_dump()
    samples = content["samples"]
    for name in ("radius", "real_radius"):
        samples[name] = [factor * r for r in samples[name]]
    correct = [p == y for p, y in zip(samples["prediction"], samples["label"], strict=True)]
    for claim in content["certified"]:
        claim["verdict"] = [c and r > claim["epsilon"] for c, r in zip(correct, samples["radius"], strict=True)]
        claim["count"] = sum(claim["verdict"])
        claim["share"] = claim["count"] / len(correct)
    file.write_bytes(canonical(content))


def test_a_radius_that_is_too_large_stops_everything(run: Path) -> None:
    _lie(run, 1.2)
    shown = cli("attack", run, *QUICK)
    assert shown.exit_code == module.COUNTEREXAMPLE
    assert "BUG IN LIPCERT" in shown.stderr
    assert "--replay" in shown.stderr
    assert shown.stdout == ""
    file = run / "attack.counterexample.safetensors"
    again = cli("attack", run, "--replay", file)
    assert again.exit_code == module.COUNTEREXAMPLE
    assert "of the run's certificate is wrong: it is seen again." in again.stdout
    assert json.loads(cli("attack", run, "--replay", file, "--json").stdout)["seen_again"] is True
    assert "nothing else" in refused("attack", run, "--replay", file, "-e", "0.5")
    _lie(run, 1 / 1.2)  # as it was: a file that says more than the certificate is no counterexample
    assert cli("attack", run, "--replay", file).exit_code == 0


def test_a_certificate_that_comes_after_the_attack(run: Path) -> None:
    kept = (run / "certificate.json").rename(run.parent / "kept.json")
    assert "There is no certificate" in cli("attack", run, *QUICK, "-e", "0.5").stdout
    kept.rename(run / "certificate.json")
    shown = cli("attack", run, *QUICK, "-e", "0.5")
    assert "No adversarial example inside of a certified radius." in shown.stdout
    _lie(run, 1.2)
    assert cli("attack", run, *QUICK, "-e", "0.5").exit_code == module.COUNTEREXAMPLE


def test_a_certificate_of_other_classes_than_the_networks(run: Path) -> None:
    content = read_certificate(run / "certificate.json").model_dump()
    samples = {name: value and list(value) for name, value in content["samples"].items()}
    content["samples"] = samples
    wrong = next(i for i, (p, y) in enumerate(zip(samples["prediction"], samples["label"], strict=True)) if p != y)
    samples["prediction"][wrong], samples["runner_up"][wrong] = samples["label"][wrong], samples["prediction"][wrong]
    content["clean"]["count"] += 1
    content["clean"]["share"] = content["clean"]["count"] / len(samples["label"])
    for claim in content["certified"]:
        claim["verdict"] = list(claim["verdict"])
        claim["verdict"][wrong] = samples["radius"][wrong] > claim["epsilon"]
        claim["count"] = sum(claim["verdict"])
        claim["share"] = claim["count"] / len(samples["label"])
    (run / "certificate.json").write_bytes(canonical(content))
    shown = cli("attack", run, "--attacks", "ddn", "--steps", "5")
    assert shown.exit_code == module.COUNTEREXAMPLE
    assert f"sample {wrong} has an adversarial example at a distance of 0," in shown.stderr


def test_data_that_is_not_the_models(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lipcert.data import Dataset

    other = Dataset(
        "digits", "test", torch.zeros(20, 1, 9, 9, dtype=torch.uint8), torch.arange(20) % 10, tuple("0123456789")
    )
    monkeypatch.setattr("lipcert.attacks.target.load", lambda *_, **__: other)
    (run / "certificate.json").unlink()
    assert "the model takes (1, 8, 8)" in refused("attack", run, "--attacks", "ddn")


def test_nothing_found(run: Path) -> None:
    shown = cli("attack", run, "--attacks", "pgd", "--first", "5", "-e", "0.000001")
    assert "No adversarial example inside of a certified radius.\n" in shown.stdout
    assert "inf" not in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([NAME], "name a file for what is found"),
        (["{run}", "--save", "{run}"], "folder or a file of the run"),
        (["{run}", "--save", "{run}/certificate.json"], "folder or a file of the run"),
        (["{run}", "--split", "train"], "which these are not"),
        (["{run}", "--attacks", "fmn"], "there is no attack 'fmn'"),
        (["{run}", "-e", "0"], "positive"),
        (["{run}/none"], "no run"),
        (["{run}", "--replay", "{run}/model.safetensors"], "no counterexample"),
        (["{run}", "--certificate", "{run}/config.toml"], "refused"),
    ],
)
def test_refusals(arguments: list[str], said: str, run: Path) -> None:
    assert said in refused("attack", *(a.format(run=run) for a in arguments))
    assert not (run / "attack.safetensors").exists()


def test_another_models_certificate(run: Path) -> None:
    content = read_certificate(run / "certificate.json").model_dump()
    content["model"]["weights_sha256"] = "0" * 64
    (run / "certificate.json").write_bytes(canonical(content))
    assert "of other weights" in refused("attack", run, *QUICK)


def test_ctrl_c_keeps_what_there_is(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopping(*arguments: object, **options: object) -> None:
        raise Interrupted("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(module, "attack_samples", stopping)
        shown = cli("attack", run, *QUICK)
    assert shown.exit_code == 130
    assert "Go on with the same command." in shown.stderr


def test_in_real_arithmetic(run: Path) -> None:
    """What is certified for real arithmetic is looked at in float64, in which the model was not stored."""
    assert (
        cli("certify", run, "--precision", "real", "--first", "40", "--save", run / "certificate.json").exit_code == 0
    )
    found = parsed("attack", run, "--attacks", "ddn")
    assert found["arithmetic"] == "real"
    assert found["data"]["samples"] == 40
    assert torch.isfinite(read_attacked(run / "attack.safetensors").distance).all()
