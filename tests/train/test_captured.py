"""Steps as CUDA graphs, on a machine without CUDA: what surrounds the recording, and that nothing in a step waits."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lipcert.layers import SmallGainConv2d
from lipcert.train import Interrupted, Trainer, load_config
from lipcert.train.captured import CapturedSteps
from lipcert.train.loss_inputs import check_parameter
from runs import LOSSES, Notes, outcome, tiny

CPU = torch.device("cpu")


class Graph:
    """A CUDA graph that is replayed by doing the work again."""

    replayed = 0

    def __init__(self) -> None:
        self.work: Callable[[], None] | None = None

    def replay(self) -> None:
        assert self.work is not None
        Graph.replayed += 1
        self.work()


class Stream:
    def __init__(self, device: object = None) -> None: ...
    def wait_stream(self, other: object) -> None: ...


def _pretend(monkeypatch: pytest.MonkeyPatch, graph: Callable[..., Any]) -> list[object]:
    """What torch has for CUDA, doing nothing; returns the streams that are set."""
    back: list[object] = []
    pretended = {
        "Stream": Stream,
        "CUDAGraph": Graph,
        "graph": graph,
        "current_stream": lambda _: Stream(),
        "stream": lambda _: contextlib.nullcontext(),
        "set_stream": back.append,
        "get_sync_debug_mode": lambda: 0,
        "set_sync_debug_mode": lambda _: None,
    }
    for name, value in pretended.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return back


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA graphs on the CPU: recording runs nothing, and a replay is the work at the recorded places."""

    @contextlib.contextmanager
    def graph(recorded: Graph, stream: object) -> Iterator[None]:
        yield

    def record(steps: CapturedSteps, x: Tensor, y: Tensor) -> None:
        steps._batch = torch.empty_like(x), torch.empty_like(y)
        steps._graph = found = Graph()  # type: ignore[assignment]
        found.work = lambda: steps._work(*steps._batch)  # type: ignore[misc]

    Graph.replayed = 0
    _pretend(monkeypatch, graph)
    monkeypatch.setattr(CapturedSteps, "_record", record)
    monkeypatch.setattr(Trainer, "_capturing", lambda t: CapturedSteps(t._work, CPU, t.reporter.message))
    # numbers on a GPU are tensors of their own device: here they would be of the CPU, where they are looked at
    monkeypatch.setattr("lipcert.train.trainer.Numbers.put", _put)


def _put(self: Any, name: str, value: float) -> float:
    return value


@pytest.mark.parametrize("loss", list(LOSSES))
def test_steps_are_the_same(loss: str, tmp_path: Path, pretended: None) -> None:
    changes = [LOSSES[loss], "train.ema=0.9", "schedule={kind='cosine',warmup=0.5}"]
    Trainer(tiny(*changes), tmp_path / "graphs").fit()
    assert Graph.replayed == 12  # of fifteen steps three were made as they are
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_capturing", lambda _: None)
        Trainer(tiny(*changes), tmp_path / "plain").fit()
    assert outcome(tmp_path / "graphs") == outcome(tmp_path / "plain")


def test_what_is_recorded_is_recorded_anew(tmp_path: Path, pretended: None) -> None:
    """Where the robust loss begins the step is another one, and after a restart everything is elsewhere."""
    config = tiny(LOSSES["crm-soft"], "loss.start_epoch=1")
    Trainer(config, tmp_path / "whole").fit()
    assert Graph.replayed == 2 + 7  # five steps without, ten with
    Graph.replayed = 0
    with pytest.raises(Interrupted):
        Trainer(config, tmp_path / "parts").fit(steps=7)
    trainer = Trainer(config, tmp_path / "parts")
    trainer.fit(resume=True)
    assert Graph.replayed == 2 + 5
    assert outcome(tmp_path / "whole") == outcome(tmp_path / "parts")


def test_a_step_that_cannot_be_recorded_is_made_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    done, notes = [], Notes()

    @contextlib.contextmanager
    def graph(recorded: object, stream: object) -> Iterator[None]:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")
        yield

    back = _pretend(monkeypatch, graph)
    steps = CapturedSteps(lambda x, y: done.append(float(x)), CPU, notes.message)
    for i in range(8):
        steps(torch.tensor(float(i)), torch.tensor(0))
    assert done == list(range(8))
    assert len(notes.messages) == 1
    assert "not permitted when stream is capturing" in notes.messages[0]
    assert len(back) == 1  # the stream that was in use before is in use again


@pytest.mark.parametrize("error", [RuntimeError("a tensor of the CPU"), KeyboardInterrupt()])
def test_the_reason_is_what_went_wrong_first(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ending the recording fails too, and says less."""
    notes, done = Notes(), []

    @contextlib.contextmanager
    def graph(recorded: object, stream: object) -> Iterator[None]:
        try:
            yield
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")

    def work(x: Tensor, y: Tensor) -> None:
        done.append(float(x))
        if len(done) == 4:
            raise error

    _pretend(monkeypatch, graph)
    steps = CapturedSteps(work, CPU, notes.message)
    for i in range(3):
        steps(torch.tensor(float(i)), torch.tensor(0))
    if isinstance(error, Exception):
        steps(torch.tensor(3.0), torch.tensor(0))
        assert "a tensor of the CPU" in notes.messages[0]
    else:
        with pytest.raises(KeyboardInterrupt):
            steps(torch.tensor(3.0), torch.tensor(0))


def test_a_step_that_waits_is_not_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recording that fails leaves traces in torch, so that it is not begun."""
    done, notes = [], Notes()

    @contextlib.contextmanager
    def graph(recorded: object, stream: object) -> Iterator[None]:
        raise AssertionError("nothing is recorded")
        yield

    def work(x: Tensor, y: Tensor) -> None:
        done.append(float(x))
        warnings.warn("called a synchronizing CUDA operation (Triggered internally at …)", stacklevel=1)

    _pretend(monkeypatch, graph)
    steps = CapturedSteps(work, CPU, notes.message)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(8):
            steps(torch.tensor(float(i)), torch.tensor(0))
    assert done == list(range(8))
    assert len(notes.messages) == 1
    assert "waits for the GPU" in notes.messages[0]


def test_a_cpu_records_nothing(tmp_path: Path) -> None:
    assert Trainer(tiny(), tmp_path / "run", device="cpu").captured is None


class Waits(TorchDispatchMode):
    """Counts looks at a value: on a GPU each of them waits, and none can be recorded."""

    found = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.found += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("model", "method", "loss"),
    [("mlp", "liplt", name) for name in LOSSES] + [("lipres-s", "layers", "crm-soft"), ("4c3f", "liplt", "crm-soft")],
)
def test_nothing_in_a_step_looks_at_a_value(
    model: str, method: str, loss: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = [f"model={{name='{model}',options={{}}}}", f"bound.method='{method}'", LOSSES[loss], "train.batch_size=8"]
    trainer = Trainer(load_config("digits-mlp-crm", changes), tmp_path / "run", device="cpu")
    (x, y), step = next(iter(trainer.batches.epoch(0))), trainer._work
    trainer._set_numbers(0)
    step(x, y)
    # Labels, and whether all vectors have moved, are looked at on the CPU only; here they are to be left alone too.
    monkeypatch.setattr(Tensor, "is_cpu", property(lambda _: False))
    with Waits() as waits:
        step(x, y)
    monkeypatch.undo()
    assert waits.found == 0


def test_numbers_may_lie_on_a_device() -> None:
    assert check_parameter("weight", torch.ones((), device="meta")).is_meta
    with pytest.raises(Exception, match="weight must be a number"):
        check_parameter("weight", torch.ones(()))  # type: ignore[call-overload]


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_both_ways_to_the_gram_matrix_are_one(kernel: int) -> None:
    layer = SmallGainConv2d((4, 8, 8), 6, kernel_size=kernel).double()
    torch.nn.init.normal_(layer.weight)
    found = [layer._gram_by_shifts(), layer._gram_at_once()]
    torch.testing.assert_close(*found)
    slopes = [torch.autograd.grad(g.square().sum(), layer.weight)[0] for g in found]
    torch.testing.assert_close(*slopes)
