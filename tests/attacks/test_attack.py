"""Attacks on small networks whose nearest adversarial examples are known, certificates that lie, and going on."""

from __future__ import annotations

import builtins
import contextlib
import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import lipcert
from adversary_exact import Exact
from adversary_nets import network
from lipcert.attacks import METHODS, Attacked, Judge, Method, Strength, attack, read_attacked
from lipcert.errors import CheckpointError, ConfigError, CounterexampleError, ShapeError
from lipcert.train import Interrupted

pytest.importorskip("foolbox")
pytest.importorskip("pyautoattack")

QUICK = Strength(steps=40)


def _net(seed: int = 0, classes: int = 5) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, classes)).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2.0)
        x = torch.rand(24, 6)
        y = net(x).argmax(1)
    y[::6] = (y[::6] + 1) % classes
    return net, x, y


def _same(a: Attacked, b: Attacked) -> bool:
    return all(torch.equal(getattr(a, n), getattr(b, n)) for n in ("labels", "prediction", "distances", "points"))


@pytest.mark.parametrize("name", METHODS)
def test_each_attack_finds_what_there_is(name: str) -> None:
    net, x, y = _net()
    at = [0.2, 0.5]
    found = attack(net, x, y, epsilons=at, methods=[name], strength=QUICK)
    assert found.finished
    assert found.methods == (name,)
    assert found.clean_accuracy == pytest.approx(20 / 24)
    assert found.clean_accuracy >= found.accuracy_at(0.2) >= found.accuracy_at(0.5)
    assert found.accuracy_at(0.5) <= 0.25
    some = torch.isfinite(found.distances[0])
    assert METHODS[name].nearest or not bool(some[~found.correct].any())
    with torch.no_grad():
        assert bool((net(found.points[some]).argmax(1) != found.prediction[some]).all())
    assert torch.equal(found.points[~some], x[~some])
    assert [n for n, s in zip(found.by, some, strict=True) if s] == [name] * int(some.sum())
    (line,) = found.tried()
    some &= found.correct
    assert line.found == int(some.sum())
    assert line.mean == pytest.approx(float(found.distances[0][some].mean()))


@pytest.mark.parametrize("seed", range(3))
def test_the_nearest_is_that_of_all_linear_regions(seed: int) -> None:
    """Two of the attacks look for it; none is nearer than the truth."""
    tiny = network("tiny", seed)
    net = copy.deepcopy(tiny.module).float().eval()
    x = tiny.inputs(12).float()
    x = (x - x.amin()) / (x.amax() - x.amin())
    exact = Exact(copy.deepcopy(net).double())  # type: ignore[arg-type]
    with torch.no_grad():
        y = net(x).argmax(1)
    found = attack(net, x, y, epsilons=[0.1], methods=["ddn", "fab-t"], arithmetic="real")
    truth = torch.tensor([exact.distance(p.numpy(), int(k))[0] for p, k in zip(x.double(), y, strict=True)])
    assert bool((found.distance >= truth * (1 - 1e-6)).all())
    close = found.distance <= truth * 1.05
    assert int(close.sum()) >= int(torch.isfinite(found.distance).sum()) / 2


def test_attacks_bracket_certificates_from_above() -> None:
    net, x, y = _net(1)
    certified = lipcert.certify(net, x, y)
    found = attack(net, x, y, epsilons=[0.05, 0.3], radius=certified.radius)
    assert bool((found.distance[found.correct] >= certified.radius[found.correct]).all())
    for e in found.epsilons:
        assert certified.robust_accuracy(e) <= found.accuracy_at(e) <= found.clean_accuracy


@pytest.mark.parametrize("arithmetic", ["float32", "float64", "real"])
def test_a_radius_that_is_too_large_is_found_out(arithmetic: str, tmp_path: Path) -> None:
    net, x, y = _net(2)
    true = attack(net, x, y, epsilons=[0.1], methods=["ddn"]).distance
    radius = 0.9 * true
    attack(net, x, y, epsilons=[0.1], methods=["ddn"], radius=radius, arithmetic=arithmetic)
    wrong = int(torch.where(torch.isfinite(true) & (true > 0), true, 0).argmax())
    radius[wrong] = true[wrong] * 1.01
    file = tmp_path / "a.safetensors"
    with pytest.raises(CounterexampleError, match="BUG IN LIPCERT") as caught:
        attack(net, x, y, epsilons=[0.1], methods=["ddn"], radius=radius, arithmetic=arithmetic, file=file)
    assert caught.value.sample == wrong
    assert caught.value.distance < caught.value.radius == float(radius[wrong])
    assert caught.value.file is not None
    kept = load_file(caught.value.file)
    assert torch.equal(kept["input"], x[wrong])
    with torch.no_grad():
        assert int(net(kept["adversarial"][None]).argmax()) != int(y[wrong])


def test_samples_that_are_certified_can_be_spared() -> None:
    net, x, y = _net(3)
    asked: list[int] = []

    def counting(target: nn.Module, inputs: Tensor, *_: Any) -> Any:
        asked.append(len(inputs))
        return iter(())

    method = Method("counting", "Counting", False, 2, counting)
    radius = torch.full((24,), 0.2, dtype=torch.float64)
    radius[::2] = 0.01
    for spare in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("lipcert.attacks.campaign.METHODS", {"counting": method})
            attack(net, x, y, epsilons=[0.1], methods=["counting"], radius=radius, spare=spare)
    correct = torch.arange(24) % 6 != 0
    assert asked == [20, int((correct & (radius <= 0.1)).sum())]


def test_what_is_classified_wrongly_is_certified_too() -> None:
    net, x, y = _net(6)
    wrong = int((torch.arange(24) % 6 == 0).nonzero()[1])
    radius = torch.zeros(24, dtype=torch.float64)
    radius[wrong] = 10.0
    with pytest.raises(CounterexampleError) as caught:
        attack(net, x, y, epsilons=[0.1], methods=["ddn"], radius=radius)
    assert caught.value.sample == wrong
    radius[wrong] = 1e-9
    found = attack(net, x, y, epsilons=[0.1], methods=["ddn"], radius=radius)
    assert float(found.nearest[wrong]) < torch.inf
    assert float(found.distance[wrong]) == 0
    assert found.tried()[0].found <= 20


def test_a_certified_class_that_is_not_the_networks() -> None:
    net, x, y = _net(7)
    with torch.no_grad():
        prediction = net(x).argmax(1)
    radius = torch.full((24,), 1e-9, dtype=torch.float64)
    options: dict[str, Any] = {"epsilons": [0.1], "methods": ["ddn"], "strength": QUICK}
    attack(net, x, y, **options, radius=radius, prediction=prediction)
    prediction[3] = (prediction[3] + 1) % 5
    with pytest.raises(CounterexampleError) as caught:
        attack(net, x, y, **options, radius=radius, prediction=prediction)
    assert (caught.value.sample, caught.value.distance) == (3, 0.0)
    radius[3] = 0.0  # which claims nothing
    attack(net, x, y, **options, radius=radius, prediction=prediction)


def test_a_point_that_was_seen_in_a_batch_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A radius of an execution is one of every order of its sums, so that it may come out otherwise when alone."""
    net, x, _ = _net(8)
    judge, whole = Judge(net, "float32"), Judge.labels
    prediction = int(judge.labels(x[:1]))
    alone = torch.full((1,), prediction)
    monkeypatch.setattr(Judge, "labels", lambda self, v: alone if len(v) == 1 else whole(self, v))
    assert judge.is_counterexample(x[0], x[1], prediction, 100.0, seen=True)
    assert not judge.is_counterexample(x[0], x[1], prediction, 100.0)


# --- going on -------------------------------------------------------------------------------------------------------
def test_a_stopped_attack_goes_on_to_the_same_end(tmp_path: Path) -> None:
    net, x, y = _net(4)
    options: dict[str, Any] = {"epsilons": [0.1, 0.3], "strength": QUICK, "batch_size": 10}
    whole = attack(net, x, y, **options)
    file, left = tmp_path / "a.safetensors", iter(range(7))
    with pytest.raises(Interrupted):
        attack(net, x, y, **options, file=file, stop=lambda: next(left, None) is None)
    half = read_attacked(file)
    assert not half.finished
    assert len(half.done) == 7
    shares: list[float] = []
    end = attack(net, x, y, **options, file=file, progress=lambda share, _: shares.append(share))
    assert end.finished
    assert _same(end, whole)
    assert shares == sorted(shares)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lipcert.attacks.campaign._Work.do", lambda *_: pytest.fail("nothing is left"))
        assert _same(attack(net, x, y, **options, file=file), whole)
    assert set(end.seconds) == set(end.methods)


@pytest.mark.parametrize("change", ["weights", "samples", "labels", "epsilons", "methods", "steps", "batch_size"])
def test_a_file_of_another_attack_is_left_alone(change: str, tmp_path: Path) -> None:
    net, x, y = _net(5)
    file = tmp_path / "a.safetensors"
    options: dict[str, Any] = {"epsilons": [0.1], "methods": ["ddn"], "strength": QUICK, "batch_size": 24}
    attack(net, x, y, **options, file=file)
    before = file.read_bytes()
    if change == "weights":
        with torch.no_grad():
            net[0].weight[0, 0] += 1e-3
    elif change == "samples":
        x = x.flip(0)
    elif change == "labels":
        y = (y + 1) % 5
    else:
        options |= {
            "epsilons": {"epsilons": [0.2]},
            "methods": {"methods": ["pgd"]},
            "steps": {"strength": Strength(9)},
            "batch_size": {"batch_size": 7},
        }[change]
    with pytest.raises(ConfigError, match="another attack"):
        attack(net, x, y, **options, file=file)
    assert file.read_bytes() == before


def test_what_was_found_before_is_held_against_a_certificate_of_later(tmp_path: Path) -> None:
    net, x, y = _net(9)
    file = tmp_path / "a.safetensors"
    options: dict[str, Any] = {"epsilons": [0.1], "methods": ["pgd", "ddn"], "strength": QUICK, "batch_size": 8}
    everywhere = torch.full((24,), 1e-9, dtype=torch.float64)
    found = attack(net, x, y, **options, radius=everywhere, file=file)
    sample = int(torch.where(torch.isfinite(found.nearest), found.nearest, 0).argmax())
    radius = everywhere.clone()
    radius[sample] = 1.01 * float(found.nearest[sample])
    for stop_after in (None, 4):  # a finished file, and one that goes on
        if stop_after is not None:
            file.unlink()
            left = iter(range(stop_after))
            with pytest.raises(Interrupted):
                attack(
                    net, x, y, **options, radius=everywhere, file=file, stop=lambda left=left: next(left, None) is None
                )
        with pytest.raises(CounterexampleError):
            attack(net, x, y, **options, radius=radius, file=file)


def test_another_architecture_or_other_spared_samples_are_another_attack(tmp_path: Path) -> None:
    net, x, y = _net(10)
    file = tmp_path / "a.safetensors"
    options: dict[str, Any] = {"epsilons": [0.1], "methods": ["ddn"], "strength": QUICK, "file": file}
    attack(net, x, y, **options, spare=True, radius=torch.zeros(24))
    for changes in ({"radius": torch.full((24,), 1e-6)}, {"radius": torch.zeros(24), "spare": False}):
        with pytest.raises(ConfigError, match="another attack"):
            attack(net, x, y, **{"spare": True, **options, **changes})
    other = nn.Sequential(*(nn.Tanh() if isinstance(m, nn.ReLU) else m for m in net))
    with pytest.raises(ConfigError, match="another attack"):
        attack(other, x, y, **options, spare=True, radius=torch.zeros(24))


def test_a_file_that_cannot_be_written_is_noticed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, y = _net()
    monkeypatch.setattr("lipcert.attacks.campaign._Work.do", lambda *_: pytest.fail("too late"))
    with pytest.raises(CheckpointError, match="cannot"):
        attack(net, x, y, epsilons=[0.1], file=tmp_path / "no" / ("x" * 300))


def test_a_counterexample_is_said_where_nothing_can_be_written(tmp_path: Path) -> None:
    net, x, y = _net()
    (tmp_path / "a.counterexample.safetensors").mkdir()
    with pytest.raises(CounterexampleError) as caught:
        attack(
            net, x, y, epsilons=[0.1], methods=["ddn"], radius=torch.full((24,), 9.0), file=tmp_path / "a.safetensors"
        )
    assert caught.value.file is None


LIES: dict[str, Any] = {
    "a distance that is not that of its point": lambda a: a.distances.mul_(1.3),
    "NaN": lambda a: a.distances[0].fill_(torch.nan),
    "negative": lambda a: a.distances[0].fill_(-1.0),
    "points outside": lambda a: a.points.add_(2.0),
    "points that are not numbers": lambda a: a.points[0].fill_(torch.nan),
    "other labels": lambda a: a.labels.copy_((a.labels + 1) % 5),
    "other predictions": lambda a: a.prediction.copy_((a.prediction + 1) % 5),
    "points of another shape": lambda a: setattr(a, "points", a.points[:, :4].contiguous()),
    "fewer samples": lambda a: setattr(a, "points", a.points[:7].contiguous()),
    "an unknown method": lambda a: setattr(a, "methods", ("fmn",)),
    "no methods": lambda a: setattr(a, "methods", ()),
    "epsilons that are none": lambda a: setattr(a, "epsilons", (float("nan"),)),
    "other epsilons": lambda a: setattr(a, "epsilons", (0.2,)),
    "negative seconds": lambda a: a.seconds.update(ddn=-1.0),
    "another arithmetic": lambda a: setattr(a, "arithmetic", "real"),
}


@pytest.mark.parametrize("lie", LIES)
def test_files_that_lie(lie: str, tmp_path: Path) -> None:
    net, x, y = _net(11)
    file = tmp_path / "a.safetensors"
    options: dict[str, Any] = {"epsilons": [0.1], "methods": ["ddn"], "strength": QUICK, "file": file}
    found = attack(net, x, y, **options)
    LIES[lie](found)
    found.write(file)
    with pytest.raises((CheckpointError, ConfigError)):
        attack(net, x, y, **options)


def test_points_that_are_not_adversarial_are_left_out(tmp_path: Path) -> None:
    net, x, y = _net(0)
    file = tmp_path / "a.safetensors"
    options: dict[str, Any] = {"epsilons": [0.1], "methods": ["ddn"], "strength": QUICK, "file": file}
    found = attack(net, x, y, **options)
    i = int(torch.isfinite(found.nearest).nonzero()[0])
    found.points[i] = (x[i] + 1e-4).clamp(0, 1)
    found.distances[0, i] = Judge.distance(x[i][None], found.points[i][None])
    found.write(file)
    assert float(attack(net, x, y, **options).nearest[i]) == torch.inf


@pytest.mark.parametrize("state", ["no_grad", "inference", "float64", "requires_grad", "int32"])
def test_whatever_the_caller_was_doing(state: str) -> None:
    net, x, y = _net(13)
    wanted = attack(net, x, y, epsilons=[0.2], strength=QUICK)
    before = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        if state == "no_grad":
            stack.enter_context(torch.no_grad())
        elif state == "inference":
            stack.enter_context(torch.inference_mode())
        elif state == "float64":
            torch.set_default_dtype(torch.float64)
            stack.callback(torch.set_default_dtype, before)
        elif state == "requires_grad":
            x = x.clone().requires_grad_()
        else:
            y = y.to(torch.int32)
        now = torch.get_default_dtype()
        assert _same(attack(net, x, y, epsilons=[0.2], strength=QUICK), wanted)
        assert torch.get_default_dtype() == now


def test_layers_with_a_bound_of_their_own() -> None:
    """Their weights are made anew in each pass, and a copy of them in float32 is attacked."""
    from lipcert.layers import LipschitzLinear, PairwiseLinear

    torch.manual_seed(0)
    net = nn.Sequential(LipschitzLinear(6, 12), nn.ReLU(), PairwiseLinear(12, 3)).eval()
    x = torch.rand(20, 6)
    with torch.no_grad():
        y = net(x).argmax(1)
    found = attack(net, x, y, epsilons=[0.3], methods=["ddn", "fab-t"], strength=QUICK)
    assert int(torch.isfinite(found.distance).sum()) >= 5
    certified = lipcert.certify(net, x, y, precision="real")
    assert bool((found.distance >= certified.radius).all())


def test_torch_is_as_random_as_before() -> None:
    net, x, y = _net()
    state = torch.get_rng_state()
    attack(net, x, y, epsilons=[0.1], strength=QUICK)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert net.training is False


@pytest.mark.parametrize("content", [b"", b"no tensors", None, "other"])
def test_files_that_are_none(content: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    if content == "other":
        from lipcert.train.safefile import write_file

        write_file(file, {"x": torch.zeros(2)}, {})
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(CheckpointError):
        read_attacked(file)


# --- refusals -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "kind", "said"),
    [
        ({"methods": ["fmn"]}, ConfigError, "there are: ddn, pgd"),
        ({"methods": []}, ConfigError, "at least"),
        ({"epsilons": [0.0]}, ConfigError, "positive"),
        ({"epsilons": [float("inf")]}, ConfigError, "positive"),
        ({"radius": torch.zeros(3)}, ShapeError, "24 samples"),
        ({"x": torch.rand(24, 6) + 0.1}, ShapeError, r"in \[0, 1\]"),
        ({"x": torch.full((24, 6), torch.nan)}, ShapeError, r"in \[0, 1\]"),
        ({"y": torch.zeros(3, dtype=torch.int64)}, ShapeError, "N labels"),
        ({"y": torch.full((24,), 5)}, ShapeError, "labels are 0 … 4"),
        ({"y": torch.full((24,), -1)}, ShapeError, "labels are 0 … 4"),
        ({"x": torch.rand(24, 6).half()}, ShapeError, "float32 or float64"),
        ({"x": torch.rand(24, 7)}, ShapeError, "does not take inputs"),
        ({"radius": torch.full((24,), torch.nan)}, ShapeError, "radii"),
        ({"methods": "ddn"}, ConfigError, "list of names"),
        ({"batch_size": 0}, ConfigError, "batch_size"),
    ],
)
def test_refusals(changes: dict[str, Any], kind: type[Exception], said: str) -> None:
    net, x, y = _net()
    given = {"x": x, "y": y, "epsilons": [0.1], **changes}
    with pytest.raises(kind, match=said):
        attack(net, given.pop("x"), given.pop("y"), **given)


def test_the_targeted_loss_needs_four_classes() -> None:
    net, x, y = _net(classes=3)
    assert attack(net, x, y, epsilons=[0.1], strength=QUICK).methods == ("ddn", "pgd", "apgd-ce", "fab-t")
    with pytest.raises(ConfigError, match="4 classes"):
        attack(net, x, y, epsilons=[0.1], methods=["apgd-t"])
    with pytest.raises(ConfigError, match="one step"):
        Strength(steps=0)


def test_without_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__
    for name in [n for n in sys.modules if n.split(".")[0] == "foolbox"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "foolbox", None)
    assert builtins.__import__ is real
    net, x, y = _net()
    with pytest.raises(ConfigError, match=r"pip install 'lipcert\[attacks\]'"):
        attack(net, x, y, epsilons=[0.1], methods=["ddn"])
