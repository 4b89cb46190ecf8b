"""The files of a run: what is in them, and what is said when they are missing, damaged, or of another run."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from lipcert.errors import CheckpointError, ConfigError, LipcertError
from lipcert.models import build
from lipcert.train import RunFolder, Trainer, load_config
from lipcert.train.checkpoint import load_state, save_state, save_weights
from lipcert.train.run_folder import build_model, write_text
from lipcert.train.schema import ModelConfig
from runs import BATCHES, STATEFUL, differing, outcome, stopped, tiny

FILES = ["checkpoint.safetensors", "config.toml", "metrics.jsonl", "model.safetensors", "summary.json"]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("done") / "run"
    Trainer(tiny(*STATEFUL), out).fit()
    return out


@pytest.fixture
def done(original: Path, tmp_path: Path) -> Path:
    """A finished run of one's own."""
    return Path(shutil.copytree(original, tmp_path / "run"))


def resumed(out: Path, *changes: str) -> dict[str, object]:
    return Trainer(tiny(*(changes or STATEFUL)), out).fit(resume=True)


def test_files_of_a_finished_run(done: Path) -> None:
    assert sorted(path.name for path in done.iterdir()) == FILES
    assert load_config(done / "config.toml") == tiny(*STATEFUL) == RunFolder(done).config()
    lines = (done / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
    for record in RunFolder(done).metrics():
        assert set(record) == {
            *("epoch", "loss", "train_accuracy", "split", "clean", "estimated_certified", "bound", "lr"),
            *("seconds", "images_per_second"),
        }
        assert record["split"] == "test"
        assert list(record["estimated_certified"]) == ["0.25", "0.5", "0.75"]
        assert 0 < record["bound"][0] <= record["bound"][1]


def test_summary(done: Path) -> None:
    config = tiny(*STATEFUL)
    summary = json.loads((done / "summary.json").read_text())
    last = RunFolder(done).metrics()[-1]
    assert summary["name"] == "digits-mlp-crm"
    assert summary["config"] == config.fingerprint()
    assert (summary["seed"], summary["epochs"], summary["split"]) == (0, 3, "test")
    assert summary["clean_accuracy"] == last["clean"]
    assert list(summary["estimated_certified_accuracy"]) == ["0.25", "0.5", "0.75"]
    assert summary["estimated_certified_accuracy"] == last["estimated_certified"]
    assert [summary["bound_estimate"][end] for end in ("low", "high")] == last["bound"]
    assert summary["parameters"] == 64 * 16 + 16 + 16 * 10 + 10
    assert summary["training_seconds"] == pytest.approx(sum(r["seconds"] for r in RunFolder(done).metrics()))
    assert summary["device"] == "cpu"
    assert summary["data"]["name"] == "digits"
    assert len(summary["data"]["train_sha256"]) == 64
    assert summary["versions"]["torch"] == torch.__version__


def test_close_radii_have_keys_of_their_own(tmp_path: Path) -> None:
    radii = [36 / 255, 0.1411765, 1]
    summary = Trainer(tiny(f"train.eval_epsilons={radii}", "train.epochs=1"), tmp_path / "run").fit()
    (record,) = RunFolder(tmp_path / "run").metrics()
    for shares in (summary["estimated_certified_accuracy"], record["estimated_certified"]):
        assert list(shares) == ["0.1411764705882353", "0.1411765", "1.0"]


def test_the_model_can_be_built_from_its_folder_alone(done: Path) -> None:
    model, header = RunFolder(done).load_model()
    assert not model.training
    assert header["input_shape"] == [1, 8, 8]
    assert header["classes"] == list("0123456789")
    assert header["model"] == tiny(*STATEFUL).model.model_dump(mode="json")
    state, _ = load_state(done / "checkpoint.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(value, state["averaged"][name])


def test_a_second_run_is_refused(done: Path) -> None:
    before = outcome(done)
    with pytest.raises(ConfigError, match=r"holds a run already. Go on with it"):
        Trainer(tiny(*STATEFUL), done).fit()
    assert outcome(done) == before


def test_files_without_a_configuration_are_another_run_s(done: Path) -> None:
    (done / "config.toml").unlink()
    for name in FILES[2:]:
        with pytest.raises(ConfigError, match=rf"holds files of another run: .* delete them \(.*{name}"):
            Trainer(tiny(*STATEFUL), done).fit()
        (done / name).unlink()
    with pytest.raises(ConfigError, match=r"holds files of another run: .* \(checkpoint.safetensors\)"):
        RunFolder(done).create(tiny())
    assert not (done / "config.toml").exists()


def test_a_configuration_alone_is_replaced(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.create(tiny("seed=1"))
    folder.create(tiny("seed=2"))
    assert folder.config() == tiny("seed=2")
    folder.log({"epoch": 1})
    with pytest.raises(ConfigError, match="holds a run already"):
        folder.check_new()


def test_resuming_a_finished_run_changes_nothing(done: Path) -> None:
    def files() -> dict[str, tuple[bytes, int]]:
        return {
            path.name: (path.read_bytes(), path.stat().st_mtime_ns)
            for path in done.iterdir()
            if "metr" not in path.name
        }

    before, metrics = files(), (done / "metrics.jsonl").read_bytes()
    trainer = Trainer(tiny(*STATEFUL), done)
    assert trainer.fit(resume=True) == RunFolder(done).summary()
    assert files() == before
    assert (done / "metrics.jsonl").read_bytes() == metrics
    for name, value in RunFolder(done).load_model()[0].state_dict().items():
        assert torch.equal(value, trainer.deployed.state_dict()[name])


@pytest.mark.parametrize(
    "damage", ["model deleted", "model cut", "summary deleted", "summary cut", "summary is a list", "summary is empty"]
)
def test_resuming_repairs_a_finished_run(done: Path, original: Path, damage: str) -> None:
    name, how = damage.split(maxsplit=1)
    path = done / ("model.safetensors" if name == "model" else "summary.json")
    if how == "deleted":
        path.unlink()
    else:
        path.write_bytes({"cut": path.read_bytes()[:-9], "is a list": b"[1]", "is empty": b"{}"}[how])
    resumed(done)
    assert differing(done, original) == []


def test_a_finished_run_without_checkpoint_is_left_alone(done: Path) -> None:
    (done / "checkpoint.safetensors").unlink()
    with pytest.raises(CheckpointError, match="finished, and its checkpoint is gone"):
        resumed(done)
    assert len(RunFolder(done).metrics()) == 3
    RunFolder(done).load_model()


def test_lines_after_the_checkpoint_and_half_lines_are_dropped(tmp_path: Path, original: Path) -> None:
    out = tmp_path / "run"
    stopped(tiny(*STATEFUL), out, BATCHES + 2)
    metrics = out / "metrics.jsonl"
    first = metrics.read_text()
    later = first.replace('"epoch": 1,', '"epoch": 2,')
    metrics.write_bytes((first + later + first.replace('"epoch": 1,', '"epoch": 3,')[:40]).encode() + b"\xff\xce")
    assert [record["epoch"] for record in RunFolder(out).metrics()] == [1, 2]
    resumed(out)
    assert differing(out, original) == []


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(tmp_path: Path, original: Path) -> None:
    out = tmp_path / "run"
    stopped(tiny(*STATEFUL), out, BATCHES + 2)
    (out / "checkpoint.safetensors").unlink()
    resumed(out)
    assert differing(out, original) == []


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no run in .*no config.toml. Train one: lipcert train"):
        resumed(tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


def test_resuming_with_another_configuration(done: Path) -> None:
    with pytest.raises(CheckpointError, match="has another configuration"):
        resumed(done, *STATEFUL, "seed=1")


@pytest.mark.parametrize("change", ["train.epochs=4", "optimizer.lr=0.1", "model.options.widths=[8]", "seed=3"])
def test_the_checkpoint_of_another_run(done: Path, tmp_path: Path, change: str) -> None:
    stopped(tiny(*STATEFUL, change), tmp_path / "other", 1)
    shutil.copy(done / "checkpoint.safetensors", tmp_path / "other")
    with pytest.raises(CheckpointError, match="belongs to another run") as caught:
        resumed(tmp_path / "other", *STATEFUL, change)
    key = change.partition("=")[0]
    assert f"config.{key}: " in str(caught.value)
    assert str(caught.value).count("\n  - ") == 1


def test_other_training_data(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(tiny(*STATEFUL), done)
    trainer.train_data = trainer.train_data.subset(torch.arange(1400))
    with pytest.raises(CheckpointError, match="data: '"):
        trainer.fit(resume=True)


def test_a_state_that_does_not_fit(done: Path) -> None:
    state, header = load_state(done / "checkpoint.safetensors")
    del state["optimizer"]
    save_state(done / "checkpoint.safetensors", state, header)
    with pytest.raises(CheckpointError, match="does not fit this model: 'optimizer'"):
        resumed(done)


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "model.safetensors"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_damaged_files(done: Path, name: str, damage: str) -> None:
    path = done / name
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    kinds = {"cut": path.read_bytes()[:-100], "flipped": bytes(content), "empty": b"", "text": b"hello, this is text"}
    path.write_bytes(kinds[damage])
    with pytest.raises(CheckpointError, match="damaged") as caught:
        resumed(done) if name.startswith("checkpoint") else RunFolder(done).load_model()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_model_of_another_configuration(done: Path, tmp_path: Path) -> None:
    Trainer(tiny("seed=5"), tmp_path / "other").fit()
    shutil.copy(tmp_path / "other" / "model.safetensors", done)
    with pytest.raises(CheckpointError, match=r"belongs to another configuration than .*config.toml"):
        RunFolder(done).load_model()


def test_models_that_say_too_little(done: Path) -> None:
    folder = RunFolder(done)
    save_weights(folder.model_file, folder.load_model()[0])
    with pytest.raises(CheckpointError, match="does not say which model it belongs to"):
        folder.load_model()
    config = folder.config()
    folder.save_model(build("mlp", input_shape=(3,), num_classes=2), config, (1, 8, 8), tuple("0123456789"))
    with pytest.raises(CheckpointError, match="do not fit the module"):
        folder.load_model()


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{}", b"[1]", b"\xff", b"[" * 10_000, b'{"name": 1}'),
        b'{"name": "a", "epochs": 1, "split": "test", "clean_accuracy": "1", "estimated_certified_accuracy": {}}',
        b'{"name": "a", "epochs": 1, "split": "test", "clean_accuracy": 1, "estimated_certified_accuracy": {"x": 1}}',
    ],
)
def test_damaged_summaries(tmp_path: Path, content: bytes) -> None:
    folder = RunFolder(tmp_path)
    folder.summary_file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"summary\.json is damaged: it is not the summary of a run"):
        folder.summary()


@pytest.mark.parametrize("line", ['{"epoch": "x"}', '{"epoch": 1.5}', '{"epoch": true}', '{"epoch": 0}', "{}", "3"])
def test_metrics_of_no_epoch(tmp_path: Path, line: str) -> None:
    folder = RunFolder(tmp_path)
    folder.log({"epoch": 1})
    with folder.metrics_file.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl is damaged: line 2 has no epoch"):
        folder.drop_metrics_after(1)
    assert len(folder.metrics_file.read_text().splitlines()) == 2


@pytest.mark.parametrize("shape", ["[2, [2]]", "[8.0]", "[0]", "[]", '"8"', "8", "[true]"])
def test_shapes_that_are_none(done: Path, shape: str) -> None:
    folder = RunFolder(done)
    header = {"input_shape": json.loads(shape), "classes": ["a", "b"], "config": folder.config().fingerprint()}
    save_weights(folder.model_file, folder.load_model()[0], header)
    with pytest.raises(CheckpointError, match="does not say which model it belongs to"):
        folder.load_model()


def test_a_header_is_checked_before_a_model_is_built(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = done / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(rb"[1, 8, 8]", rb"[9, 9, 9]"))
    monkeypatch.setattr("lipcert.train.run_folder.build_model", None)
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged: .* checksum"):
        RunFolder(done).load_model()


def test_no_model_yet(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no trained model in .*; train one"):
        RunFolder(tmp_path / "none").load_model()
    stopped(tiny(), tmp_path / "run", 1)
    with pytest.raises(CheckpointError, match="not finished: go on with lipcert train --resume"):
        RunFolder(tmp_path / "run").load_model()


@pytest.mark.parametrize("key", ["name", "mean", "std", "input_shape", "num_classes"])
def test_options_that_are_not_the_model_s(key: str) -> None:
    with pytest.raises(ConfigError, match=f"model.options cannot hold {key}"):
        build_model(ModelConfig(name="mlp", options={key: 1}), (1, 8, 8), 10)


def test_a_damaged_configuration(done: Path) -> None:
    (done / "config.toml").write_text("name = ")
    with pytest.raises(ConfigError, match=r"config.toml"):
        RunFolder(done).config()


def test_the_folder_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ConfigError, match="cannot make the run folder"):
            Trainer(tiny(), out).fit()


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    trainer = Trainer(tiny(), tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refused)
        with pytest.raises(LipcertError, match=r"cannot write .*config.toml: Permission denied"):
            trainer.fit()
    assert list((tmp_path / "run").iterdir()) == []
    trainer.folder.metrics_file.mkdir()
    with pytest.raises(CheckpointError, match=r"cannot write .*metrics.jsonl: Is a directory"):
        trainer.folder.log({"epoch": 1})


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o500)
    with pytest.raises(LipcertError, match="cannot write"):
        Trainer(tiny(), tmp_path / "run").fit()


def test_writing_leaves_the_old_file_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "ü.txt"
    write_text(path, "alt\n")
    write_text(path, "ℓ2\n")
    assert path.read_text(encoding="utf-8") == "ℓ2\n"
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask

    def stopped_here(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stopped_here)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "lost")
    assert path.read_text(encoding="utf-8") == "ℓ2\n"
    assert [p.name for p in tmp_path.iterdir()] == ["ü.txt"]
