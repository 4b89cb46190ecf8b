"""What is refused, with one message that says what is wrong and what to do."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
import typer

from lipcert.cli.common import guarded
from lipcert.errors import DataError
from lipcert.models import available
from lipcert.train import RunFolder, Trainer
from lipcert.train.checkpoint import save_weights
from runs import SMALL, TINY, cli, refused, stopped, tiny


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    Trainer(tiny("train.epochs=1"), out).fit()
    return out


@pytest.fixture
def run(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "run"))


# --- configurations -------------------------------------------------------------------------------------


def test_an_unknown_configuration(tmp_path: Path) -> None:
    said = refused("train", "digits-mlp-cmr", "--out", tmp_path / "x")
    assert "there is no configuration file 'digits-mlp-cmr', nor one of that name in the library" in said
    assert "did you mean 'digits-mlp-crm'?" in said
    assert "mnist-4c3f-crm" in said
    assert list(tmp_path.iterdir()) == []


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    mistakes = ["train.epoch=3", "optimiser.lr=1", "loss.weight=-1", "bound.scope=pairs", "seed"]
    said = refused("train", "digits-mlp-crm", *mistakes, 'name=""', "--out", tmp_path / "x").splitlines()
    assert said[0] == "configuration 'digits-mlp-crm' has 6 mistakes:"
    assert len(said) == 7
    assert "  - train.epoch: unknown key; did you mean 'epochs'?" in said
    assert "  - optimiser: unknown key; did you mean 'optimizer'?" in said
    assert "  - override 'seed' is not of the form key.sub=value" in said


def test_no_configuration(tmp_path: Path) -> None:
    said = refused("train", "--out", tmp_path / "x")
    assert said.startswith("which configuration? Give the name of a ready one (lipcert configs)")


def test_a_toml_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("name = \n")
    said = refused("train", tmp_path / "my.toml", "--out", tmp_path / "x")
    assert f"configuration '{tmp_path / 'my.toml'}'" in said
    assert "line 1" in said


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("model.name=mpl", "unknown model 'mpl'; did you mean 'mlp'? there are: " + ", ".join(available())),
        ("data.name=digit", "unknown data set 'digit'; did you mean 'digits'?"),
        ("model.options.mean=0.5", "model.options cannot hold mean"),
        ("data.augment.shift=0.01", "less than half a pixel"),
    ],
)
def test_unknown_names_and_options(tmp_path: Path, change: str, words: str) -> None:
    assert words in refused("train", "digits-mlp-crm", *TINY, *SMALL, change, "--out", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


# --- folders --------------------------------------------------------------------------------------------


def test_a_folder_that_holds_a_run(run: Path) -> None:
    said = refused("train", "digits-mlp-crm", "--out", run)
    assert said == f"{run} holds a run already. Go on with it (--resume), choose another folder, or delete it."


def test_files_of_another_run(run: Path) -> None:
    (run / "config.toml").unlink()
    (run / "summary.json").unlink()
    said = refused("train", "digits-mlp-crm", "--out", run)
    assert said == (
        f"{run} holds files of another run: choose another --out or delete them "
        "(metrics.jsonl, checkpoint.safetensors, model.safetensors)."
    )


def test_a_run_that_failed_at_once_can_be_corrected(tmp_path: Path) -> None:
    arguments = ["train", "digits-mlp-crm", *TINY, *SMALL, "train.epochs=1", "--out", tmp_path / "x", "--quiet"]
    assert "not finite" in refused(*arguments, 'optimizer={kind="sgd",lr=1e30}')
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["config.toml"]
    assert cli(*arguments).exit_code == 0
    assert RunFolder(tmp_path / "x").config() == tiny("train.epochs=1")


def test_resume_takes_no_configuration(run: Path) -> None:
    said = refused("train", "digits-mlp-crm", "--resume", "--out", run)
    assert said == f"--resume takes the configuration from {run / 'config.toml'}; give no other."


@pytest.mark.parametrize("arguments", [["train", "--resume", "--out"], ["certify"], ["bound"]])
def test_no_run_there(tmp_path: Path, arguments: list[str]) -> None:
    said = refused(*arguments, tmp_path / "nothing [/x]")
    assert f"in {tmp_path / 'nothing [/x]'}" in said
    assert "lipcert train" in said


def test_a_run_that_is_not_finished(tmp_path: Path) -> None:
    stopped(tiny(), tmp_path / "run", 1)
    for command in ("certify", "bound"):
        assert "it is not finished: go on with lipcert train --resume" in refused(command, tmp_path / "run")


def test_the_checkpoint_of_another_run(run: Path, tmp_path: Path) -> None:
    stopped(tiny("seed=3"), tmp_path / "other", 1)
    shutil.copy(run / "checkpoint.safetensors", tmp_path / "other")
    said = refused("train", "--resume", "--out", tmp_path / "other", "--json").splitlines()
    assert said == [
        "the checkpoint belongs to another run:",
        "  - config.seed: 0 in the checkpoint, 3 here",
        "  - config.train.epochs: 1 in the checkpoint, 3 here",
    ]


@pytest.mark.parametrize("command", ["certify", "bound"])
def test_a_damaged_model(run: Path, command: str) -> None:
    content = bytearray((run / "model.safetensors").read_bytes())
    content[-3] ^= 64
    (run / "model.safetensors").write_bytes(content)
    assert "model.safetensors is damaged" in refused(command, run, "--json")


@pytest.mark.parametrize("command", ["certify", "bound"])
def test_weights_that_are_not_numbers(run: Path, command: str) -> None:
    folder = RunFolder(run)
    model, header = folder.load_model()
    with torch.no_grad():
        next(model.parameters()).view(-1)[7] = float("nan")
    folder.save_model(model, folder.config(), tuple(header["input_shape"]), tuple(header["classes"]))
    for guarantee in ("upper", "estimate"):
        said = refused(command, run, "--json", "--guarantee", guarantee)
        assert "NaN" in said
        assert "fc1.weight" in said


def test_names_that_the_system_refuses(tmp_path: Path) -> None:
    said = refused("train", "digits-mlp-crm", *TINY, *SMALL, "--out", tmp_path / ("x" * 300))
    assert "File name too long" in said
    (tmp_path / "file").write_text("")
    said = refused("train", "digits-mlp-crm", *TINY, *SMALL, "--out", tmp_path / "file" / "run")
    assert f"cannot make the run folder {tmp_path / 'file' / 'run'}" in said


# --- certify and bound ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-e", "half"], "a radius is a number or a fraction such as 36/255; got 'half'"),
        (["-e", "0.1", "-e", "1/0"], "got '1/0'"),
        (["-e", "-0.1"], "a radius must be finite and not negative; got '-0.1'"),
        (["-e", "nan"], "got 'nan'"),
        (["--split", "val"], "unknown split 'val': use 'train' or 'test'"),
        (["--device", "cuda:99"], "--device is cpu, cuda or cuda:N; got 'cuda:99'"),
        (["--dense-limit", "1", "--failure", "0"], "smaller side of 16 exceeds the limit of 1"),
        (["--failure", "2"], "failure is a probability"),
        (["--save", "/nowhere/at all/x.json"], "there is no folder /nowhere/at all"),
        (["--save", "/dev/null"], "is not an ordinary file"),
        (["--save", ""], "is a folder"),
    ],
)
def test_certify(run: Path, arguments: list[str], words: str) -> None:
    assert words in refused("certify", run, "--json", *arguments)


def test_classes_of_another_name(run: Path) -> None:
    folder = RunFolder(run)
    model, _ = folder.load_model()
    names = ("0", "1", "2", "three", *"456789")
    folder.save_model(model, folder.config(), (1, 8, 8), names)
    assert "where it says 'three' the data says '3'" in refused("certify", run, "--json")


@pytest.mark.parametrize("shape", [[2**40, 2**40], [10**6, 10**6]])
@pytest.mark.parametrize("command", ["certify", "bound"])
def test_a_header_with_an_impossible_shape(run: Path, command: str, shape: list[int]) -> None:
    folder = RunFolder(run)
    model, _ = folder.load_model()
    folder.save_model(model, folder.config(), tuple(shape), tuple("0123456789"))
    said = refused(command, run, "--json")
    assert said == f"{folder.model_file} is damaged: no model takes inputs of the shape {shape} that it says"


def test_metrics_without_an_epoch(run: Path) -> None:
    (run / "metrics.jsonl").write_text('{"epoch": "x"}\n')
    said = refused("train", "--resume", "--out", run, "--json")
    assert said == f"{run / 'metrics.jsonl'} is damaged: line 1 has no epoch. Delete that line."


def test_what_must_not_be_overwritten(run: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "is not an ordinary file" in refused("certify", run, "--save", tmp_path / "pipe")
    (tmp_path / "link").symlink_to(run / "model.safetensors")
    (tmp_path / "other").symlink_to(run)
    for path in (*RunFolder(run).files, tmp_path / "link", tmp_path / "other" / "config.toml"):
        before = path.read_bytes() if path.exists() else None
        assert f"--save {path}: is a file of the run in {run}" in refused("certify", run, "--save", path)
        assert (path.read_bytes() if path.exists() else None) == before
    assert "there is no folder" in refused("certify", run, "--save", tmp_path / "pipe" / "x")


def test_a_save_that_fails_costs_no_results(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    path = tmp_path / "all.json"
    for options in ([], ["--json"]):
        result = cli("certify", run, "--save", path, *options)
        assert result.exit_code == 1
        assert result.stderr == f"error: cannot write {path}: No space left on device\n"
        assert ("clean_accuracy" if options else "certified at 0.25") in result.stdout
    assert not path.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give either a run's folder or an ONNX file, or --model NAME with --input SHAPE"),
        (["--model", "mlp"], "--model needs --input, such as --input 3,32,32"),
        (["--model", "mlp", "--input", "three"], "such as 3,32,32; got 'three'"),
        (["--model", "mlp", "--input", ""], "such as 3,32,32; got ''"),
        (["--model", "mlp", "--input", "1000000x1000000"], "no model takes inputs of more than 268,435,456 numbers"),
        (["--model", "mlp", "--input", "3,0"], "input_shape must be a list of positive integers"),
        (["--model", "4c3f", "--input", "10"], "takes images (channels, height, width); got (10,)"),
        (["--model", "8c2f", "--input", "3,8,8"], "too deep for images of 8×8"),
        (["--model", "8c3f", "--input", "3,8,8"], "unknown model '8c3f'; did you mean"),
        (["--model", "mlp", "--input", "4", "--weights", "/no/file"], "there is no file /no/file"),
    ],
)
def test_bound(arguments: list[str], words: str) -> None:
    assert words in refused("bound", "--json", *arguments)


def test_bound_of_a_run_takes_no_model(run: Path) -> None:
    assert "give either a run's folder or an ONNX file, or --model" in refused(
        "bound", run, "--model", "mlp", "--input", "3"
    )
    assert "--input and --weights go with --model" in refused("bound", run, "--input", "3")
    assert "--input and --weights go with --model" in refused("bound", run, "--weights", "x")


def test_weights_of_another_architecture(run: Path, tmp_path: Path) -> None:
    said = refused("bound", "--model", "mlp", "--input", "1,8,8", "--weights", run / "model.safetensors")
    assert "do not fit the module" in said
    assert "fc1.weight has shape (16, 64), the module's (128, 64)" in said
    save_weights(tmp_path / "w.safetensors", torch.nn.Linear(2, 2))
    said = refused("bound", "--model", "mlp", "--input", "1,8,8", "--weights", tmp_path / "w.safetensors")
    assert "missing in the file" in said
    assert "not in the module" in said


def test_the_model_of_other_data(run: Path) -> None:
    config = (run / "config.toml").read_text().replace('name = "digits"\n', 'name = "other"\n')
    (run / "config.toml").write_text(config)
    assert "belongs to another configuration" in refused("bound", run)


# --- how an error ends ----------------------------------------------------------------------------------


def test_training_that_fails(tmp_path: Path) -> None:
    changes = [*TINY, *SMALL, 'optimizer={kind="sgd",lr=1e30}']
    result = cli("train", "digits-mlp-crm", *changes, "--out", tmp_path / "x", "--quiet", "--json")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: the loss is not finite in epoch 1. Train again with a lower optimizer.lr")


def test_messages_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    text = "a [bold]message[/bold] of [/x] and \\[y] that is very long " + "indeed " * 30
    with pytest.raises(BaseException) as stop, guarded():  # noqa: PT011
        raise DataError(text)
    assert getattr(stop.value, "exit_code", None) == 1
    assert capsys.readouterr().err == f"error: {text}\n"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:116] data. not enough memory: you tried to allocate 4 bytes."),
    ],
)
def test_too_little_memory(capsys: pytest.CaptureFixture[str], error: Exception) -> None:
    with pytest.raises(typer.Exit) as stop, guarded():
        raise error
    assert stop.value.exit_code == 1
    said = capsys.readouterr().err
    assert said.startswith("error: there is not enough memory. ")
    assert all(word in said for word in ("train.batch_size", "--dense-limit", "--device"))
    assert said.count("\n") == 1


def test_memory_that_torch_cannot_get(tmp_path: Path) -> None:
    changes = [*TINY, "model.options.widths=[1000000000000]"]
    assert "not enough memory" in refused("train", "digits-mlp-crm", *changes, "--out", tmp_path / "x")


def test_bugs_are_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="a bug"), guarded():
        raise RuntimeError("a bug")
    with pytest.raises(ZeroDivisionError), guarded():
        raise ZeroDivisionError
    with pytest.raises(BrokenPipeError), guarded():
        raise BrokenPipeError
