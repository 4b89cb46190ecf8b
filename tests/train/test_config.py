"""Configurations: what is read, what is refused and how it is said, and the settings that come with the library."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lipcert.errors import ConfigError
from lipcert.models import build
from lipcert.train import toml
from lipcert.train.config import RunConfig, available_configs, load_config, parse_config
from lipcert.train.schema import CRMConfig, ExponentialLR, Normalization, Ramp

MINIMAL = """
name = "example"
[data]
name = "digits"
[model]
name = "mlp"
[loss]
kind = "crm"
temperature = 5
radius_cap = 1
weight = { start = 0, end = 3, epochs = [1, 4], shape = "cosine" }
[optimizer]
kind = "adam"
lr = 1e-3
[train]
epochs = 8
batch_size = 32
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(MINIMAL)
    return path


def mistakes(file: Path | str, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(file, overrides)
    first, *rest = str(caught.value).splitlines()
    assert f"has {len(rest)} mistake" in first
    return [line.removeprefix("  - ") for line in rest]


# ----------------------------------------------------------------------------------------------------- reading


def test_defaults_are_filled_in(file: Path) -> None:
    config = load_config(file)
    assert config.seed == 0
    assert config.model.normalize == "none"
    assert config.model.options == {}
    assert (config.bound.method, config.bound.scope, config.bound.every) == ("liplt", "pairwise", 1)
    assert config.optimizer.clip_norm == 0
    assert config.schedule.kind == "constant"
    assert config.train.precision == "float32"
    assert isinstance(config.loss, CRMConfig)
    assert config.loss.weight == Ramp(start=0.0, end=3.0, epochs=(1.0, 4.0), shape="cosine")
    assert config.loss.form == "soft"


def test_a_configuration_cannot_be_changed(file: Path) -> None:
    with pytest.raises(ValidationError):
        load_config(file).seed = 1


def test_a_byte_order_mark_and_dos_line_ends_are_no_mistake(tmp_path: Path, file: Path) -> None:
    dos = tmp_path / "dos.toml"
    dos.write_bytes(b"\xef\xbb\xbf" + MINIMAL.replace("\n", "\r\n").encode())
    assert load_config(dos) == load_config(str(file))


def test_clip_norm_none_is_zero(file: Path) -> None:
    document = load_config(file).to_dict()
    document["optimizer"]["clip_norm"] = None
    assert parse_config(document).optimizer.clip_norm == 0


# ---------------------------------------------------------------------------------------------------- overrides


def test_overrides(file: Path) -> None:
    config = load_config(
        file,
        [
            "seed=7",
            "name=other-name",
            " model.options.widths = [8, 8] ",
            "model.options.activation=tanh",
            "loss.weight.end=9",
            "loss.radius_cap={start=0.1, end=1, epochs=[0, 2]}",
            'optimizer={kind="sgd", lr=0.1}',
            "schedule.kind=cosine",
            "train.eval_epsilons=[0.1, 1]",
            "train.epochs=3",
            "train.epochs=4",
        ],
    )
    assert (config.seed, config.name, config.train.epochs) == (7, "other-name", 4)
    assert config.model.options == {"widths": [8, 8], "activation": "tanh"}
    assert isinstance(config.loss, CRMConfig)
    assert isinstance(config.loss.weight, Ramp)
    assert isinstance(config.loss.radius_cap, Ramp)
    assert config.loss.weight.end == 9
    assert config.loss.radius_cap.shape == "linear"
    assert config.optimizer.kind == "sgd"
    assert config.optimizer.momentum == 0.9
    assert config.train.eval_epsilons == (0.1, 1.0)


def test_words_that_are_values_need_quotes_to_be_text(file: Path) -> None:
    assert load_config(file, ["model.name=4c3f"]).model.name == "4c3f"
    assert load_config(file, ['name="5"']).name == "5"
    assert mistakes(file, "name=5") == ["name: must be a valid string; got 5"]
    assert mistakes(file, "optimizer.lr=fast") == ["optimizer.lr: must be a valid number; got 'fast'"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed", "override 'seed' is not of the form key.sub=value"),
        ("=3", "not of the form"),
        ("data..name=x", "not of the form"),
        ("name=two words", "override of name: 'two words' is neither"),
        ("optimizer.betas=[.9, 1]", "numbers are written 0.9"),
        ("seed=", "override of seed: ''"),
        ("seed=1\nname='x'", "is more than one value"),
        (f"seed={'9' * 5000}", "is neither a TOML value"),
        ("seed.x=3", "seed.x: seed is 3, not a table; set seed itself"),
    ],
)
def test_wrong_overrides(file: Path, override: str, said: str) -> None:
    file.write_text("seed = 3\n" + MINIMAL)
    (only,) = mistakes(file, override)
    assert said in only


# ----------------------------------------------------------------------------------------------------- mistakes


def test_all_mistakes_at_once(file: Path) -> None:
    found = mistakes(
        file,
        "nonsense",
        "sed=1",
        "data.augment.flips=true",
        "model.normalize=non",
        "bound.scope=pairwize",
        "bound.every=0",
        "loss.weight.shape=cubic",
        "loss.temprature=3",
        "optimizer.momentum=0.9",
        "schedule.kind=cosin",
        "train.epochs=1.5",
        "train.batch_size=true",
        "train.eval_epsilons=[0.1, -1, '2']",
    )
    assert sorted(found) == sorted(
        [
            "override 'nonsense' is not of the form key.sub=value",
            "sed: unknown key; did you mean 'seed'?",
            "data.augment.flips: unknown key; did you mean 'flip'?",
            "model.normalize: must be 'none'; got 'non'; did you mean 'none'?",
            "bound.scope: must be 'pairwise', 'class' or 'global'; got 'pairwize'; did you mean 'pairwise'?",
            "bound.every: must be greater than or equal to 1; got 0",
            "loss.weight.shape: must be 'linear', 'exponential' or 'cosine'; got 'cubic'",
            "loss.temprature: unknown key for kind 'crm'; did you mean 'temperature'?",
            "optimizer.momentum: unknown key for kind 'adam'; there are: kind, lr, weight_decay, clip_norm, betas",
            "schedule: unknown kind 'cosin'; did you mean 'cosine'? there are: constant, cosine, onecycle, exponential",
            "train.epochs: must be a valid integer; got 1.5",
            "train.batch_size: must be a valid integer; got True",
            "train.eval_epsilons[1]: must be greater than or equal to 0; got -1",
            "train.eval_epsilons[2]: must be a valid number; got '2'",
        ]
    )


def test_missing_keys(tmp_path: Path) -> None:
    (tmp_path / "empty.toml").write_text("")
    required = ("name", "data", "model", "loss", "optimizer", "train")
    assert mistakes(tmp_path / "empty.toml") == [f"{key}: is required" for key in required]
    found = mistakes(
        tmp_path / "empty.toml",
        "name=a",
        "data.name=b",
        "model.name=c",
        "loss.kind=gloro-trades",
        "optimizer={}",
        "train={}",
    )
    assert found == [
        "loss.epsilon: is required",
        "loss.weight: is required",
        "optimizer: needs a key 'kind', one of adam, adamw, sgd",
        "train.epochs: is required",
        "train.batch_size: is required",
    ]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("loss.start_epoch=8", "loss.start_epoch (8) is not before train.epochs (8)"),
        ('schedule={kind="cosine", final_lr=1}', "schedule.final_lr (1) is above optimizer.lr (0.001)"),
        ("loss.weight.epochs=[4, 1]", "loss.weight: epochs must be [from, to]"),
        ("loss.weight.shape=exponential", "loss.weight: an exponential ramp needs start and end above 0"),
        ("model.normalize={mean=[0.5], std=[1, 1]}", "model.normalize: mean and std must have the same length"),
        ("model.normalize={mean=[0.5], std=[0]}", "model.normalize.std[0]: must be greater than 0"),
        ("loss.weight=inf", "loss.weight: must be a finite number"),
        ("loss.weight=nan", "loss.weight: must be"),
        ("loss.temperature=0", "loss.temperature: must be greater than 0"),
        ("bound.scaling=neuron", 'bound: scaling is of method = "smallgain"'),
        ("data=[1]", "data: must be a table"),
        ("loss=3", "loss: must be a table"),
        ("model.options=3", "model.options: must be"),
        ("model.options.day=1979-05-27", "model.options.day"),
        ("train.ema=1", "train.ema: must be less than 1"),
        ("data.validation=1", "data.validation: must be less than 1"),
        ("seed=-1", "seed: must be greater than or equal to 0"),
    ],
)
def test_values_that_do_not_fit(file: Path, override: str, said: str) -> None:
    (only,) = mistakes(file, override)
    assert only.startswith(said)


def test_plain_cross_entropy_has_no_robust_settings(file: Path) -> None:
    assert load_config(file, ['loss={kind="ce"}']).loss.kind == "ce"
    assert "loss.start_epoch: unknown key for kind 'ce'; there are: kind" in mistakes(
        file, 'loss={kind="ce", start_epoch=3}'
    )


def test_a_missing_file_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'mnist-4c3f-crm'"):
        load_config("mnist-4c3f-cmr")
    with pytest.raises(ConfigError, match="did you mean 'mnist-4c3f-crm'"):
        load_config("somewhere/mnist-4c3f-crmm.toml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path)
    with pytest.raises(ConfigError, match="cannot read"):
        load_config("a\0b")
    (tmp_path / "latin.toml").write_bytes(b'name = "caf\xe9"')
    with pytest.raises(ConfigError, match="cannot read"):
        load_config(tmp_path / "latin.toml")


def test_syntax_errors_have_a_line(file: Path) -> None:
    file.write_text(MINIMAL + "\nthis is no TOML\n")
    with pytest.raises(ConfigError, match=r"run\.toml.*not valid TOML.*line 19"):
        load_config(file)


def test_an_integer_may_be_too_long_to_be_read(file: Path) -> None:
    file.write_text(f"seed = {'9' * 5000}\n" + MINIMAL)
    with pytest.raises(ConfigError, match=r"run\.toml.*not valid TOML.*5000 digits"):
        load_config(file)


def test_a_file_goes_before_the_library_when_it_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mnist-4c3f-crm").write_text(MINIMAL)
    assert load_config("mnist-4c3f-crm").data.name == "mnist"
    assert load_config("./mnist-4c3f-crm").data.name == "digits"
    assert load_config(Path("mnist-4c3f-crm")).data.name == "digits"


# ------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("name", available_configs())
def test_round_trips(name: str, tmp_path: Path) -> None:
    config = load_config(name, ["model.options.odd={'a key' = [1, {b = 'ü\"'}]}"])
    assert parse_config(json.loads(json.dumps(config.to_dict()))) == config
    (tmp_path / "copy.toml").write_text(config.to_toml(), encoding="utf-8")
    copy = load_config(tmp_path / "copy.toml")
    assert copy == config
    assert copy.fingerprint() == config.fingerprint()


def test_the_fingerprint_is_of_the_content(file: Path) -> None:
    config = load_config(file)
    assert load_config(file, ["loss.temperature=5.0", "seed=0"]).fingerprint() == config.fingerprint()
    assert load_config(file, ["seed=1"]).fingerprint() != config.fingerprint()
    assert len(config.fingerprint()) == 64
    program = f"from lipcert.train.config import load_config; print(load_config({str(file)!r}).fingerprint())"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == config.fingerprint()


VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(), VALUES, max_size=4))
def test_any_table_survives_toml(document: dict[str, Any]) -> None:
    assert toml.loads(toml.dumps(document)) == document


def test_toml_has_no_null() -> None:
    with pytest.raises(ConfigError, match="TOML cannot hold None"):
        toml.dumps({"a": None})


# ------------------------------------------------------------------------------------- what comes with the library

SHAPES = {
    "mnist": ((1, 28, 28), 10),
    "fashion-mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "tiny-imagenet-200": ((3, 64, 64), 200),
    "tiny-imagenet-200:10": ((3, 64, 64), 10),
    "digits": ((1, 8, 8), 10),
}


@pytest.mark.parametrize("name", available_configs())
def test_every_configuration_can_be_built(name: str) -> None:
    config = load_config(name)
    assert config.name == name
    shape, classes = SHAPES[config.data.name]
    norm = config.model.normalize
    mean, std = (norm.mean, norm.std) if isinstance(norm, Normalization) else (None, None)
    build(config.model.name, input_shape=shape, num_classes=classes, mean=mean, std=std, **config.model.options)


@pytest.mark.parametrize(
    ("name", "t", "cap", "weight", "epochs", "batch", "lr", "decay_from", "final", "iterations"),
    [
        ("mnist-4c3f-crm", 5, 2.2, 30, 400, 512, 1e-3, 25, 1e-6, 10),
        ("cifar10-6c2f-crm", 10, 0.1, 30, 400, 512, 1e-3, 200, 1e-6, 5),
        ("tiny-imagenet-8c2f-crm", 12, 0.2, 150, 300, 256, 1e-4, 100, 1e-7, 5),
    ],
)
def test_published_settings(
    name: str,
    t: float,
    cap: float,
    weight: float,
    epochs: int,
    batch: int,
    lr: float,
    decay_from: float,
    final: float,
    iterations: int,
) -> None:
    config = load_config(name)
    assert isinstance(config.loss, CRMConfig)
    assert isinstance(config.schedule, ExponentialLR)
    assert (config.loss.temperature, config.loss.radius_cap, config.loss.weight) == (t, cap, weight)
    assert (config.loss.start_epoch, config.loss.form) == (10, "soft")
    assert (config.train.epochs, config.train.batch_size, config.train.precision) == (epochs, batch, "float32")
    assert (config.optimizer.kind, config.optimizer.lr, config.optimizer.clip_norm) == ("adam", lr, 0)
    assert (config.schedule.start_epoch, config.schedule.final_lr) == (decay_from, final)
    assert config.bound.power_iterations == iterations


def test_published_augmentation_and_units() -> None:
    augment = {
        name: load_config(f"{name}-crm").data.augment for name in ("mnist-4c3f", "cifar10-6c2f", "tiny-imagenet-8c2f")
    }
    assert [(a.flip, a.shift, a.rotate) for a in augment.values()] == [
        (False, 0, 0),
        (True, 0.1, 10),
        (True, 0.2, 20),
    ]
    cifar = load_config("cifar10-6c2f-crm")
    assert cifar.model.normalize == Normalization(mean=(0.5,) * 3, std=(0.5,) * 3)
    assert cifar.train.eval_epsilons == pytest.approx((36 / 255, 72 / 255, 108 / 255), abs=1e-16)
    assert math.isclose(load_config("mnist-4c3f-crm").train.eval_epsilons[0], 1.58)


def test_the_quick_configuration() -> None:
    quick = load_config("cifar10-6c2f-quick")
    assert isinstance(quick.loss, CRMConfig)
    assert (quick.loss.temperature, quick.loss.radius_cap, quick.loss.weight) == (12, 0.25, 15)
    assert quick.loss.start_epoch == 0
    assert (quick.optimizer.lr, quick.optimizer.clip_norm) == (1e-3, 1)
    assert (quick.schedule.kind, quick.train.epochs, quick.train.batch_size) == ("onecycle", 30, 256)
    assert (quick.train.precision, quick.train.channels_last) == ("bfloat16", True)


def test_every_distance_says_its_unit() -> None:
    text = json.dumps(RunConfig.model_json_schema())
    assert text.count("pixel unit") >= 6
