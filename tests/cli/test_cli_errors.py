"""What is refused, with one message that says what is wrong and what to do."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

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
        ("data.name=digit", "unknown data set 'digit'. Did you mean 'digits'?"),
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
        (["--dense-limit", "3"], "dense"),
        (["--save", "/nowhere/at all/x.json"], "there is no folder /nowhere/at all"),
    ],
)
def test_certify(run: Path, arguments: list[str], words: str) -> None:
    assert words in refused("certify", run, "--json", *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give either a run's folder, or --model NAME with --input SHAPE"),
        (["--model", "mlp"], "--model needs --input, such as --input 3,32,32"),
        (["--model", "mlp", "--input", "three"], "such as 3,32,32; got 'three'"),
        (["--model", "mlp", "--input", ""], "such as 3,32,32; got ''"),
        (["--model", "mlp", "--input", "3,0"], "input_shape must hold positive integers"),
        (["--model", "4c3f", "--input", "10"], "takes images (channels, height, width); got (10,)"),
        (["--model", "8c2f", "--input", "3,8,8"], "too deep for images of 8×8"),
        (["--model", "8c3f", "--input", "3,8,8"], "unknown model '8c3f'; did you mean"),
        (["--model", "mlp", "--input", "4", "--weights", "/no/file"], "there is no file /no/file"),
    ],
)
def test_bound(arguments: list[str], words: str) -> None:
    assert words in refused("bound", "--json", *arguments)


def test_bound_of_a_run_takes_no_model(run: Path) -> None:
    assert "give either a run's folder, or --model" in refused("bound", run, "--model", "mlp", "--input", "3")
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


def test_bugs_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), guarded():
        raise ZeroDivisionError
    with pytest.raises(BrokenPipeError), guarded():
        raise BrokenPipeError
