"""The training loop: what is applied in each step, and what is evaluated and kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lipcert import Estimate, UpperBound, lipschitz
from lipcert.certify.radius import radii
from lipcert.data import load, split
from lipcert.errors import ConfigError, DataError
from lipcert.train import Interrupted, RunFolder, Trainer, TrainingBound, adversarial
from lipcert.train.evaluate import evaluate, predict
from lipcert.train.factory import default_device, make_bound
from lipcert.train.schedules import average_decay, learning_rate, value_at
from runs import BATCHES, LOSSES, Notes, outcome, stopped, tiny


def accuracy(module: torch.nn.Module) -> float:
    logits, labels = predict(module, load("digits", "test"), device=torch.device("cpu"))
    return float((logits.argmax(1) == labels).double().mean())


@pytest.mark.parametrize("native", [True, False])
def test_bfloat16_where_it_is_emulated(native: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lipcert.train.trainer.computes_bfloat16", lambda device: native)
    titles, dtypes = list[str](), set[torch.dtype]()
    notes = Notes()
    monkeypatch.setattr(notes, "start", lambda title, *_: titles.append(title))
    config = tiny("train.precision='bfloat16'", "train.epochs=1")
    trainer = Trainer(config, tmp_path / "run", reporter=notes)
    last = [m for m in trainer.model.modules() if isinstance(m, nn.Linear)][-1]
    last.register_forward_hook(lambda _m, _x, y: dtypes.add(y.dtype) if torch.is_grad_enabled() else None)
    trainer.fit()
    assert dtypes == {torch.bfloat16 if native else torch.float32}
    assert ("emulated" in titles[0]) == (not native)
    assert trainer.folder.config() == config


def test_channels_last_is_refused_where_torch_gets_gradients_wrong(tmp_path: Path) -> None:
    """1 × 1 convolutions with a stride and fewer than 16 channels: a corrupted heap, a wrong gradient, or no end."""
    resnet = 'model={name="resnet-small",options={widths=[8,8,8]}}'
    with pytest.raises(ConfigError, match=r"channels_last: .*kernel_size=\(1, 1\), stride=\(2, 2\)"):
        Trainer(tiny(resnet, "train.channels_last=true"), tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    Trainer(tiny(resnet, "train.channels_last=false"), tmp_path / "run")


# --- what a run is --------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_run_and_another_another(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(3)  # whatever was drawn before
        Trainer(tiny(f"seed={seed}", "train.epochs=1", "data.augment.shift=0.125"), tmp_path / name).fit()
    assert outcome(tmp_path / "a") == outcome(tmp_path / "b")
    assert outcome(tmp_path / "a")["weights"] != outcome(tmp_path / "c")["weights"]


def test_it_learns(tmp_path: Path) -> None:
    summary = Trainer(tiny(LOSSES["ce"], "train.epochs=8", "train.batch_size=64"), tmp_path / "run").fit()
    assert summary["clean_accuracy"] > 0.7
    losses = [record["loss"] for record in RunFolder(tmp_path / "run").metrics()]
    assert losses[-1] < losses[0] - 0.5


def test_learning_rates_and_ramps_reach_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = [
        'schedule={kind="cosine",warmup=0.5,final_lr=1e-5}',
        "loss.weight={start=0.0,end=4.0,epochs=[1,2]}",
        "loss.radius_cap={start=1.0,end=2.0,epochs=[0,3]}",
        "loss.start_epoch=0.4",
    ]
    config = tiny(*changes)
    trainer = Trainer(config, tmp_path / "run")
    seen: list[tuple[float, float, float]] = []
    update, loss = trainer.optimizer.step, trainer.loss.forward
    used: list[bool] = []

    def looked_at(logits: Tensor, labels: Tensor, bound: Tensor) -> Tensor:
        used.append(True)
        return loss(logits, labels, bound)

    def noted() -> None:
        seen.append((trainer.optimizer.param_groups[0]["lr"], trainer.loss.weight, trainer.loss.radius_cap))  # type: ignore[arg-type]
        update()

    monkeypatch.setattr(trainer.loss, "forward", looked_at)
    monkeypatch.setattr(trainer.optimizer, "step", noted)
    trainer.fit()
    assert len(seen) == 3 * BATCHES
    assert len(used) == 2 * BATCHES - 1  # plain cross-entropy before the weight is above 0
    for step, (lr, weight, cap) in enumerate(seen):
        expected = learning_rate(
            step, steps_per_epoch=BATCHES, epochs=3, lr=config.optimizer.lr, schedule=config.schedule
        )
        assert lr == expected
        if step > BATCHES:
            assert weight == value_at(config.loss.weight, step / BATCHES)  # type: ignore[union-attr]
            assert cap == value_at(config.loss.radius_cap, step / BATCHES)  # type: ignore[union-attr]
    assert [round(w, 6) for _, w, _ in seen][BATCHES : 2 * BATCHES] == [0, 0.8, 1.6, 2.4, 3.2]
    assert RunFolder(tmp_path / "run").metrics()[-1]["lr"] == seen[-1][0]


def test_a_weight_that_leaves_zero_finds_the_bound_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ramp = "loss.weight={start=0.0,end=1.0,epochs=[2,3]}"
    trainer = Trainer(tiny(ramp, "optimizer.lr=0.01", "train.eval_every=3"), tmp_path / "run")
    start, loss, pairs = trainer.bound.value.clone(), trainer.loss.forward, list[tuple[Tensor, Tensor]]()

    def looked_at(logits: Tensor, labels: Tensor, bound: Tensor) -> Tensor:
        pairs.append((bound.detach().clone(), TrainingBound(trainer.model, (1, 8, 8), warmup=100).value))
        return loss(logits, labels, bound)

    monkeypatch.setattr(trainer.loss, "forward", looked_at)
    trainer.fit()
    assert len(pairs) == BATCHES - 1
    used, real = pairs[0]
    assert real.max() > 1.3 * start.max()
    torch.testing.assert_close(used, real, rtol=0.01, atol=0)


def test_adversarial_training_moves_each_sample_up_its_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(tiny("train.adversarial=0.2"), tmp_path / "run")
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def noted(logits: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, distance: float) -> Tensor:
        moved, net = adversarial.moved(logits, x, y, distance), trainer.model
        for one, label, to in zip(x, y, moved, strict=True):
            at = one[None].clone().requires_grad_()
            before = nn.functional.cross_entropy(net(at), label[None])
            (up,) = torch.autograd.grad(before, at)
            torch.testing.assert_close(to - one, 0.2 * up[0] / up.norm(), rtol=1e-3, atol=1e-5)
        seen.append((nn.functional.cross_entropy(net(x), y), nn.functional.cross_entropy(net(moved), y), moved))
        return moved

    used: list[Tensor] = []
    trainer.model.register_forward_pre_hook(lambda _, args: used.append(args[0]))
    monkeypatch.setattr("lipcert.train.trainer.moved", noted)
    with pytest.raises(Interrupted):
        trainer.fit(steps=2)
    assert len(seen) == 2
    assert all(after > before for before, after, _ in seen)
    assert all(any(x is moved for x in used) for _, _, moved in seen)


def test_moving_a_sample_leaves_batch_normalisation_alone() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)).train()
    x, y = torch.rand(5, 3), torch.tensor([0, 1, 0, 1, 0])
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with adversarial.sample_by_sample(net):
        together = adversarial.moved(net, x, y, 0.1)
        alone = adversarial.moved(net, x[:1], y[:1], 0.1)
    torch.testing.assert_close(together[:1], alone)
    assert all(m.training for m in net.modules())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_training_with_moved_samples_and_batch_normalisation_counts_each_batch_once(tmp_path: Path) -> None:
    small = ['model={name="resnet-small",options={widths=[4,4,4]}}', "train.adversarial=0.1"]
    trainer = Trainer(tiny(*small), tmp_path / "run")
    with pytest.raises(Interrupted):
        trainer.fit(steps=2)
    counts = {int(v) for k, v in trainer.model.state_dict().items() if k.endswith("num_batches_tracked")}
    assert counts == {2}


def test_a_gradient_that_overflows_moves_a_sample_no_further_either() -> None:
    x, y = torch.rand(2, 2), torch.tensor([0, 1])
    far = adversarial.moved(lambda z: (z - z.detach()) * 3e38 * 10, x, y, 0.1) - x
    torch.testing.assert_close(far.norm(dim=1), torch.full((2,), 0.1))


@pytest.mark.parametrize("margin", [1.0, 30.0, 60.0, 80.0, 1000.0])
def test_no_sample_is_moved_further_however_sure_the_network_is(margin: float) -> None:
    """At 60 the squares of the gradient underflow, at 1000 the gradient does."""
    x, y = torch.rand(3, 4), torch.zeros(3, dtype=torch.int64)
    offset = torch.tensor([margin, 0.0, 0.0, 0.0])
    far = (adversarial.moved(lambda x: x + offset, x, y, 0.2) - x).norm(dim=1)
    torch.testing.assert_close(far, torch.full((3,), 0.2 if margin < 1000 else 0.0))


def test_gradients_are_clipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(tiny("optimizer.clip_norm=0.01", "train.epochs=1"), tmp_path / "run")
    update, norms = trainer.optimizer.step, list[float]()

    def noted() -> None:
        gradients = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        norms.append(float(torch.stack([g.norm() for g in gradients]).norm()))
        update()

    monkeypatch.setattr(trainer.optimizer, "step", noted)
    trainer.fit()
    assert len(norms) == BATCHES
    assert max(norms) == pytest.approx(0.01, rel=1e-3)


# --- what is evaluated and kept -------------------------------------------------------------------------


def test_averaged_weights_are_evaluated_saved_and_certified(tmp_path: Path) -> None:
    config = tiny("train.ema=0.95", "train.batch_size=64", "train.epochs=4", LOSSES["ce"])
    trainer = Trainer(config, tmp_path / "run")
    summary = trainer.fit()
    assert trainer.averaged is trainer.deployed
    model, _ = RunFolder(tmp_path / "run").load_model()
    for name, value in model.state_dict().items():
        assert torch.equal(value, trainer.averaged.state_dict()[name])
        assert not torch.equal(value, trainer.model.state_dict()[name])
    assert accuracy(model) == summary["clean_accuracy"] != accuracy(trainer.model)
    exact = lipschitz(model, (1, 8, 8), scope="pairwise", guarantee="upper")
    off = exact.value[exact.value > 0]
    assert summary["bound_estimate"]["low"] == pytest.approx(float(off.min()), rel=1e-3)
    assert summary["bound_estimate"]["high"] == pytest.approx(float(off.max()), rel=1e-3)


def test_the_average_is_an_exponential_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(tiny("train.ema=0.25", "train.epochs=2"), tmp_path / "run")
    expected = trainer.model.fc1.weight.detach().double().clone()  # type: ignore[union-attr,operator]
    update, steps = trainer.optimizer.step, iter(range(2 * BATCHES))

    def noted() -> None:
        update()
        decay = average_decay(0.25, next(steps))
        expected.mul_(decay).add_(trainer.model.fc1.weight.detach().double(), alpha=1 - decay)  # type: ignore[union-attr]

    monkeypatch.setattr(trainer.optimizer, "step", noted)
    trainer.fit()
    assert next(steps, None) is None
    assert trainer.averaged is not None
    torch.testing.assert_close(trainer.averaged.fc1.weight.double(), expected, rtol=0, atol=1e-6)  # type: ignore[union-attr]


def test_a_long_average_of_a_short_run_has_learned(tmp_path: Path) -> None:
    changes = ["train.ema=0.9999", "train.epochs=8", "train.batch_size=64"]
    summary = Trainer(tiny(LOSSES["ce"], *changes), tmp_path / "run").fit()
    assert summary["clean_accuracy"] > 0.6


def test_looking_at_a_run_leaves_no_trace_in_it(tmp_path: Path) -> None:
    for every in (1, 3):
        Trainer(tiny(f"train.eval_every={every}"), tmp_path / str(every)).fit()
    often, once = outcome(tmp_path / "1"), outcome(tmp_path / "3")
    for part in ("weights", "model", "optimizer", "bound", "random"):
        assert often[part] == once[part], part


def test_predicting_leaves_the_mode_of_each_layer() -> None:
    module = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
    module[1].eval()  # frozen
    predict(module, load("digits", "test"), device=torch.device("cpu"))
    assert [m.training for m in module.modules()] == [True, True, False, True]
    assert int(module[1].num_batches_tracked) == 0


def test_reported_numbers_are_those_of_the_saved_model(tmp_path: Path) -> None:
    config = tiny("train.batch_size=64", "train.epochs=6")
    summary = Trainer(config, tmp_path / "run").fit()
    model, _ = RunFolder(tmp_path / "run").load_model()
    exact = lipschitz(model, (1, 8, 8), scope="pairwise", guarantee="upper")
    assert isinstance(exact, UpperBound)
    logits, labels = predict(model, load("digits", "test"), device=torch.device("cpu"))
    result = radii(logits, exact, labels, errors=torch.zeros(()))
    assert summary["clean_accuracy"] == result.clean_accuracy
    for epsilon, share in summary["estimated_certified_accuracy"].items():
        assert share == pytest.approx(result.robust_accuracy(float(epsilon)), abs=0.006)


@pytest.mark.parametrize("ema", [0.0, 0.99])
def test_reported_numbers_are_those_of_layers_that_are_proved(tmp_path: Path, ema: float) -> None:
    """Their estimates are behind while weights move fast: the network was up to 1.3 times as large as the saved one."""
    model = 'model={name="lipres-s",options={widths=[4,4],blocks=[1,1],hidden=16}}'
    loss = ['bound.method="layers"', "loss.weight=2.0", "loss.temperature=5.0", 'schedule={kind="constant"}']
    changes = [model, *loss, "train.epochs=3", "train.batch_size=64", "train.eval_every=3", "optimizer.lr=1e-2"]
    trainer = Trainer(tiny(*changes, f"train.ema={ema}", "train.eval_epsilons=[0.05,0.3]"), tmp_path / "run")
    summary = trainer.fit()
    saved, _ = RunFolder(tmp_path / "run").load_model()
    bound = make_bound(trainer.config.bound, saved, (1, 8, 8), seed=0, every=1, iterations=1).settle()
    estimate = Estimate(bound.double(), "layers", "pairwise")
    data, cpu = load("digits", "test"), torch.device("cpu")
    found, _ = evaluate(saved, data, estimate, trainer.config.train.eval_epsilons, device=cpu)
    assert summary["clean_accuracy"] == pytest.approx(found.clean, abs=0.006)
    assert summary["estimated_certified_accuracy"] == pytest.approx(found.robust, abs=0.012)


def test_the_robust_loss_must_come(tmp_path: Path) -> None:
    late = tiny("train.epochs=2", "loss.start_epoch=1.99")  # 4 steps an epoch
    with pytest.raises(ConfigError, match=r"start_epoch \(1.99\) is after the last step, which begins at 1\."):
        Trainer(late, tmp_path / "run")


def test_one_training_at_a_time_in_a_folder(tmp_path: Path) -> None:
    first, folder = Trainer(tiny("train.epochs=1"), tmp_path / "run"), RunFolder(tmp_path / "run")
    with folder.held():
        for resume in (False, True):
            with pytest.raises(ConfigError, match="another training is at work in"):
                Trainer(tiny("train.epochs=1"), tmp_path / "run").fit(resume=resume and folder.exists)
    first.fit()
    with folder.held(), pytest.raises(ConfigError, match="another training is at work in"):
        Trainer(tiny("train.epochs=1"), tmp_path / "run").fit(resume=True)


def test_a_validation_split(tmp_path: Path) -> None:
    trainer = Trainer(tiny("data.validation=0.25", "train.epochs=1", "seed=7"), tmp_path / "run")
    summary = trainer.fit()
    rest, held_out = split(load("digits"), 0.25, 7)
    assert (trainer.train_data.fingerprint, trainer.eval_data.fingerprint) == (rest.fingerprint, held_out.fingerprint)
    assert summary["split"] == RunFolder(tmp_path / "run").metrics()[0]["split"] == "validation"
    assert summary["data"]["train_sha256"] == rest.fingerprint


@pytest.mark.parametrize(("every", "expected"), [(1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (9, [5])])
def test_evaluated_now_and_then_and_at_the_end(tmp_path: Path, every: int, expected: list[int]) -> None:
    notes = Notes()
    Trainer(tiny(f"train.eval_every={every}", "train.epochs=5"), tmp_path / "run", reporter=notes).fit()
    assert [record["epoch"] for record in RunFolder(tmp_path / "run").metrics()] == notes.epochs == expected
    assert notes.ended


def test_saved_now_and_then_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(tiny("train.checkpoint_every=2", "train.epochs=5"), tmp_path / "run")
    saved, save = [], trainer.save

    def noted() -> None:
        saved.append(trainer.epoch)
        save()

    monkeypatch.setattr(trainer, "save", noted)
    trainer.fit()
    assert saved == [2, 4, 5]


def test_an_interrupted_run_says_where_it_is(tmp_path: Path) -> None:
    notes = Notes()
    with pytest.raises(Interrupted, match=f"stopped in epoch 2 of 3; the state is saved in {tmp_path / 'run'}"):
        Trainer(tiny(), tmp_path / "run", reporter=notes).fit(steps=BATCHES + 1)
    assert notes.ended


# --- mistakes are found before anything is written ------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ("data.augment.shift=0.01", DataError, "less than half a pixel"),
        ("data.name=digit", DataError, "did you mean 'digits'"),
        ("data.validation=0.0001", DataError, "leaves a part empty"),
        ("model.name=mpl", ConfigError, "did you mean 'mlp'"),
        ("model.options.width=[3]", ConfigError, "did you mean 'widths'"),
        ("model.options.mean=0.5", ConfigError, "model.options cannot hold mean"),
        ("model.normalize={mean=[0.1,0.2],std=[1.0,1.0]}", ConfigError, "2 channels"),
        ("model.name=8c2f", ConfigError, "too deep for images"),
    ],
)
def test_mistakes_leave_no_folder(tmp_path: Path, change: str, error: type[Exception], words: str) -> None:
    changes = [change] if "8c2f" not in change else ["model.options={}", change]
    with pytest.raises(error, match=words):
        Trainer(tiny(*changes), tmp_path / "run").fit()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("there", "expected"), [(True, "cuda"), (False, "cpu")])
def test_the_default_device(monkeypatch: pytest.MonkeyPatch, there: bool, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert default_device() == torch.device(expected)


def test_a_batch_may_be_larger_than_the_data(tmp_path: Path) -> None:
    trainer = Trainer(tiny("train.batch_size=100000", "train.epochs=1"), tmp_path / "run")
    assert len(trainer.batches) == 1
    trainer.fit()
    assert stopped(tiny("train.batch_size=100000"), tmp_path / "other", 1).batch == 1
