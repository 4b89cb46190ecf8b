"""The demo, from nothing to the picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import lipcert.cli.demo as module
from lipcert.cli import moons
from lipcert.train import RunFolder, Trainer
from runs import cli, refused

NAMES = ("cross-entropy", "CRM, LipLT", "CRM, small gain")


def shares(shown: str) -> dict[str, list[float]]:
    """The rows of the table, in percent."""
    found = {}
    for name in NAMES:
        rows = [line.removeprefix(name) for line in shown.splitlines() if line.startswith(name + "  ")]
        for row in rows:
            found[name] = [float(word) for word in row.split() if word != "%"]
    return found


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "my demo"
    first = cli("demo", "--out", out, "--epochs", "20")
    assert first.exit_code == 0, first.stderr
    found = shares(first.stdout)
    assert set(found) == set(NAMES)
    clean, quarter, half, _ = range(4)
    assert found["cross-entropy"][clean] > 90
    for name in NAMES[1:]:
        assert found[name][clean] > 80
        assert found[name][quarter] > found["cross-entropy"][quarter]
        assert found[name][half] > 40 > 20 > found["cross-entropy"][half]
    assert "Proved ℓ2 radii (small gain, pairwise)" in first.stdout
    assert first.stdout.endswith(f"The whole curve: {out / 'certified.png'}\n")
    with Image.open(out / "certified.png") as picture:
        colours = picture.convert("RGB").getcolors(1 << 24)
        assert picture.size[0] >= 600
        assert colours is not None
        assert len(colours) > 50
    assert sorted(path.name for path in out.iterdir()) == ["certified.png", "crm", "crm-smallgain", "cross-entropy"]

    def no_step(*_: object) -> None:
        raise AssertionError("nothing is left to train")

    (out / "certified.png").unlink()
    monkeypatch.setattr(Trainer, "_step", no_step)
    second = cli("demo", "--out", out, "--epochs", "20")
    assert second.exit_code == 0, second.stderr
    assert second.stdout == first.stdout
    assert second.stderr.count("is finished: nothing is left to do.") == 3
    assert (out / "certified.png").exists()

    for other in (["--epochs", "21"], ["--epochs", "20", "--seed", "1"], []):
        said = refused("demo", "--out", out, *other)
        assert said == f"{out / 'cross-entropy'} holds another run: choose another --out, or delete it."


def test_a_demo_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit = Trainer.fit
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "fit", lambda self, **options: fit(self, **options, steps=30))
        result = cli("demo", "--out", tmp_path, "--epochs", "2")
        assert result.exit_code == 130
        assert "Go on with the same command." in result.stderr
    monkeypatch.setattr(module, "_draw", lambda results, path: path)
    result = cli("demo", "--out", tmp_path, "--epochs", "2")
    assert result.exit_code == 0
    assert RunFolder(tmp_path / "cross-entropy").summary() is not None


def test_without_matplotlib_only_the_picture_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = cli("demo", "--out", tmp_path, "--epochs", "1")
    assert result.exit_code == 1
    assert "pip install 'lipcert[demo]'" in result.stderr
    assert set(shares(result.stdout)) == set(NAMES)


def test_two_moons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "playground", lambda seed: moons.playground(seed, 150))
    result = cli("demo", "--two-moons", "--out", tmp_path)
    assert result.exit_code == 0, result.stderr
    rows = {line.split()[0]: line.replace("%", "").split()[1:] for line in result.stdout.splitlines() if "%" in line}
    plain, crm = ([float(v) for v in rows[name]] for name in ("cross-entropy", "CRM"))
    assert min(plain[0], crm[0]) > 85
    assert crm[-1] > 1.5 * plain[-1]  # mean radius
    with Image.open(tmp_path / "two-moons.png") as picture:
        assert picture.size[0] > picture.size[1] > 600


def test_every_point_of_a_disc_is_answered_alike() -> None:
    ground = moons.playground(0, 150)[1]
    points, _ = moons.two_moons(120, 1)
    angle = torch.linspace(0, 6.283, 60)
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    with torch.no_grad():
        around = points[:, None] + (ground.radii.radius * 0.999)[:, None, None].float() * circle
        found = ground.net(around.reshape(-1, 2)).argmax(1).reshape(120, 60)
    assert bool((found == ground.radii.prediction[:, None]).all())
