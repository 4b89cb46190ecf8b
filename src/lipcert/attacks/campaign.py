"""All attacks on all samples, a batch at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lipcert.attacks.judge import Judge, copied
from lipcert.attacks.methods import METHODS, Method, Strength
from lipcert.attacks.record import Attacked, read_attacked
from lipcert.certify.identity import versions, weights_digest
from lipcert.digests import digest
from lipcert.errors import CheckpointError, ConfigError, CounterexampleError, ShapeError
from lipcert.graph.capture import in_eval_mode, ordinary_mode
from lipcert.train.interrupt import Interrupted
from lipcert.train.safefile import write_file

__all__ = ["attack", "methods_for", "remeasured"]

_SAVED = 20.0  # seconds between two times that a file is written
_AGAIN = 500  # samples at a time, where what was found is looked at again


def methods_for(names: Sequence[str] | None, classes: int) -> tuple[Method, ...]:
    """The attacks of these names, by default all that there are for so many classes.

    Raises:
        ConfigError: an unknown name, or one for more classes.
    """
    if isinstance(names, str):
        raise ConfigError(f"methods are a list of names, such as [{names!r}]")
    if names is None:
        return tuple(m for m in METHODS.values() if m.classes <= classes)
    for name in names:
        if name not in METHODS:
            raise ConfigError(f"there is no attack {name!r}; there are: {', '.join(METHODS)}")
        if METHODS[name].classes > classes:
            raise ConfigError(f"the attack {name} is for {METHODS[name].classes} classes and more; here are {classes}")
    if not names:
        raise ConfigError(f"name one attack at least, of: {', '.join(METHODS)}")
    return tuple(METHODS[name] for name in dict.fromkeys(names))


def attack(
    module: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epsilons: Sequence[float],
    methods: Sequence[str] | None = None,
    strength: Strength | None = None,
    radius: Tensor | None = None,
    prediction: Tensor | None = None,
    spare: bool = False,
    arithmetic: str = "float32",
    batch_size: int = 200,
    file: str | Path | None = None,
    about: dict[str, Any] | None = None,
    progress: Callable[[float, str], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Attacked:
    """Look for the nearest adversarial example of every sample: the nearest input with another prediction.

    Attacks that look for the nearest one run once, on all samples: the radius of a wrong answer is a promise too. The
    others run at each radius on the samples that are classified rightly and for which nothing was found within it yet,
    those that are certified there among them: a certificate is put to the test, not trusted.

    Args:
        module: raw input in [0, 1] → logits (n, C), in float32 or float64.
        x: ``(N, *shape)``, float32 or float64, in [0, 1].
        y: labels (N,), in 0 … C−1.
        epsilons: ℓ2 radii, in the units of x.
        methods: names of :data:`lipcert.attacks.METHODS`; by default all that there are for so many classes.
        strength: how hard they try.
        radius: (N,), certified radii to be held against what is found.
        prediction: (N,), certified classes to be held against those of the network; needs ``radius``.
        spare: no attacks within a radius on samples that are certified there, which takes a fraction of the time.
        arithmetic: in which predictions are taken, as in :class:`lipcert.attacks.Judge`: that of the certificate.
        batch_size: samples at a time. What is found depends on it a little, as attacks are random.
        file: kept up to date; an attack that was stopped goes on from it, and what it holds is measured again.
        about: kept in the file.
        progress: is told the share that is done, and what is being done.
        stop: asked between batches; if it says so, the file is written and the attack ends.

    Raises:
        CounterexampleError: an adversarial example is nearer than the certified radius. Nothing else is tried, and if
            there is a ``file``, the two inputs are beside it, in ``NAME.counterexample.safetensors``.
        ConfigError: a missing library, an unknown attack, or a file of another attack.
        CheckpointError: a file that cannot be written, or is damaged.
        ShapeError: inputs that do not fit.
        Interrupted: ``stop`` said so.

    Example:
        >>> net, x = nn.Linear(3, 2).eval(), torch.rand(8, 3)
        >>> found = attack(net, x, net(x).argmax(1), epsilons=[0.1], methods=["ddn"])  # doctest: +SKIP
        >>> found.clean_accuracy >= found.accuracy_at(0.1)  # doctest: +SKIP
        True
    """
    strength, file = strength or Strength(), None if file is None else Path(file)
    x = x.detach()
    with in_eval_mode(module), ordinary_mode(), torch.enable_grad(), _default_dtype(torch.float32):
        _check(x, y, epsilons, radius, batch_size)
        judge, y = Judge(module, arithmetic), y.to(device=x.device, dtype=torch.int64)
        classes = _classes(judge, x)
        if not bool(((y >= 0) & (y < classes)).all()):
            raise ShapeError(f"labels are 0 … {classes - 1}; got {int(y.min())} … {int(y.max())}")
        chosen = methods_for(methods, classes)
        seen = torch.cat([judge.labels(x[i : i + batch_size]) for i in range(0, len(x), batch_size)])
        options = {**vars(strength), "batch_size": batch_size, "spare": spare}
        spared = radius if spare else None
        fresh = _fresh(module, judge, x, y, seen, chosen, [float(e) for e in epsilons], options, spared)
        fresh.about |= about or {}
        found = _begun(file, fresh, judge, x) or fresh
        work = _Work(judge, copied(module).float().requires_grad_(False), x, seen, strength, found, radius, spare, file)
        if not found.finished:
            work.save()  # before hours are spent on what cannot be kept
        work.compare(prediction)
        units = list(_units(chosen, found, batch_size))
        for number, (method, epsilon, start) in enumerate(() if found.finished else units):
            if progress is not None:
                progress(number / len(units), f"{method.title}{'' if method.nearest else f' at {epsilon:.4g}'}")
            if stop():
                work.save()
                raise Interrupted("stopped")
            work.do(method, epsilon, slice(start, start + batch_size))
    if not found.finished:
        found.finished = True
        work.save()
    return found


def _fresh(
    module: nn.Module,
    judge: Judge,
    x: Tensor,
    y: Tensor,
    prediction: Tensor,
    chosen: Sequence[Method],
    epsilons: list[float],
    options: dict[str, Any],
    spared: Tensor | None,
) -> Attacked:
    """An attack that has found nothing yet. Its key is of all that decides what it will find."""
    weights, names = weights_digest(module), tuple(m.name for m in chosen)
    tensors = {"x": x, "y": y, "prediction": prediction, **({} if spared is None else {"spared": spared})}
    key = digest(tensors, weights, repr(module), json.dumps([names, epsilons, options, judge.arithmetic]))
    return Attacked(
        key=key,
        methods=names,
        epsilons=tuple(epsilons),
        arithmetic=judge.arithmetic,
        about={**versions(), "weights": weights, "options": options},
        labels=y.cpu(),
        prediction=prediction.cpu(),
        distances=torch.full((len(chosen), len(x)), torch.inf, dtype=torch.float64),
        points=x.cpu().clone(),
        seconds={},
        done=set(),
    )


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """For libraries that make tensors without saying of what."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@dataclass(eq=False)
class _Work:
    """Attacks on some of the samples; ``target`` is the network in float32, which the libraries work in."""

    judge: Judge
    target: nn.Module
    x: Tensor
    prediction: Tensor
    strength: Strength
    found: Attacked
    radius: Tensor | None
    spare: bool
    file: Path | None
    saved: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        count = len(self.x)
        self.claimed = torch.zeros(count, dtype=torch.float64) if self.radius is None else self.radius.cpu().double()

    def do(self, method: Method, epsilon: float, part: slice) -> None:
        """One attack on one batch, unless it is done already."""
        unit = f"{method.name}@{epsilon!r}:{part.start}"
        if unit in self.found.done:
            return
        wanted = self.found.prediction >= 0
        if not method.nearest:
            wanted &= self.found.correct & (self.found.nearest > epsilon)
            if self.spare:
                wanted &= self.claimed <= epsilon
        rows, began = part.start + wanted[part].nonzero().squeeze(1), time.perf_counter()
        if len(rows):
            self._attack(method, epsilon, rows)
            self.compare()
        spent = self.found.seconds.get(method.name, 0.0) + time.perf_counter() - began
        self.found.seconds[method.name] = spent
        self.found.done.add(unit)
        if time.monotonic() - self.saved > _SAVED:
            self.save()

    def _attack(self, method: Method, epsilon: float, rows: Tensor) -> None:
        here = rows.to(self.x.device)
        x, prediction = self.x[here], self.prediction[here]
        with torch.random.fork_rng(range(torch.cuda.device_count())):  # the libraries seed torch's own
            torch.manual_seed(self.strength.seed)
            for candidates in method.run(self.target, x.float(), prediction, epsilon, self.strength):
                self.found.put(method.name, rows, *self.judge.nearest(x, prediction, candidates))

    def compare(self, prediction: Tensor | None = None) -> None:
        """Hold all that was found against the certified radii, and the predictions against the certified ones.

        Raises:
            CounterexampleError: one is wrong.
        """
        if prediction is not None:
            other = (prediction.cpu() != self.found.prediction) & (self.claimed > 0)
            for i in other.nonzero().squeeze(1).tolist():
                self._check(i, self.x[i], int(prediction[i]))
        for i in (self.found.nearest < self.claimed).nonzero().squeeze(1).tolist():
            self._check(i, self.found.points[i].to(self.x), int(self.found.prediction[i]))

    def _check(self, i: int, point: Tensor, prediction: int) -> None:
        x, radius = self.x[i], float(self.claimed[i])
        if self.judge.is_counterexample(x, point, prediction, radius, seen=True):
            distance = float(self.judge.distance(x[None], point[None]))
            raise CounterexampleError(i, distance, radius, self._kept(i, point, prediction, distance, radius))

    def _kept(self, i: int, point: Tensor, prediction: int, distance: float, radius: float) -> Path | None:
        """Write the two inputs of a counterexample beside the file, if that can be done."""
        if self.file is None:
            return None
        about = {
            "sample": i,
            "prediction": prediction,
            "distance": distance,
            "radius": radius,
            "arithmetic": self.judge.arithmetic,
            "about": self.found.about,
        }
        beside = self.file.with_name(f"{self.file.stem}.counterexample.safetensors")
        tensors = {"input": self.x[i].cpu().clone(), "adversarial": point.cpu().clone()}
        try:
            write_file(beside, tensors, {"counterexample": json.dumps(about)})
        except CheckpointError:  # what was found matters more than where it is kept
            return None
        return beside

    def save(self) -> None:
        """Write the file, if there is to be one."""
        if self.file is not None:
            self.found.write(self.file)
        self.saved = time.monotonic()


def _check(x: Tensor, y: Tensor, epsilons: Sequence[float], radius: Tensor | None, batch_size: int) -> None:
    if x.dtype not in (torch.float32, torch.float64) or x.ndim < 2 or y.shape != x.shape[:1] or not len(x):
        given = f"{tuple(x.shape)} of {x.dtype} and {tuple(y.shape)}"
        raise ShapeError(f"an attack takes inputs (N, *shape) in float32 or float64, and N labels; got {given}")
    if not (float(x.min()) >= 0 and float(x.max()) <= 1):
        raise ShapeError("an attack takes inputs in [0, 1]: a normalisation belongs into the model")
    if radius is not None and (radius.shape != y.shape or bool(radius.isnan().any())):
        raise ShapeError(f"there are {len(y)} samples, and radii of shape {tuple(radius.shape)}")
    if not all(0 < e < float("inf") for e in epsilons):
        raise ConfigError(f"the radii of an attack are positive and finite; got {list(epsilons)}")
    if batch_size < 1:
        raise ConfigError(f"batch_size is at least 1; got {batch_size}")


def _classes(judge: Judge, x: Tensor) -> int:
    with torch.no_grad():
        try:
            shape = judge.module(x[:1].to(judge.dtype)).shape
        except RuntimeError as error:
            raise ShapeError(f"the module does not take inputs of shape {tuple(x.shape[1:])}: {error}") from error
    if len(shape) != 2 or shape[1] < 2:
        raise ShapeError(f"an attack is for a classifier with logits (n, C); this module's are {tuple(shape)}")
    return int(shape[1])


def _units(chosen: Sequence[Method], found: Attacked, size: int) -> Iterator[tuple[Method, float, int]]:
    for method in chosen:
        for epsilon in (0.0,) if method.nearest else sorted(found.epsilons):
            for start in range(0, len(found.labels), size):
                yield method, epsilon, start


def _begun(file: Path | None, fresh: Attacked, judge: Judge, x: Tensor) -> Attacked | None:
    """What a file holds of this attack.

    Raises:
        ConfigError: it is another attack's.
    """
    if file is None or not file.exists():
        return None
    found = read_attacked(file)
    same = all(getattr(found, n) == getattr(fresh, n) for n in ("key", "methods", "epsilons", "arithmetic"))
    if not same or not (torch.equal(found.labels, fresh.labels) and torch.equal(found.prediction, fresh.prediction)):
        raise ConfigError(
            f"{file} holds another attack: of other weights, samples, attacks, radii or batches. Choose another file, "
            "or delete it."
        )
    return remeasured(found, judge, x, file)


def remeasured(found: Attacked, judge: Judge, x: Tensor, file: str | Path = "the file of an attack") -> Attacked:
    """What was read from a file, if its points are where and what it says.

    Points are executed again, and those that come out as their input does in this batch are left out; distances are
    those of the points.

    Args:
        found: of these samples.
        judge: of the network that was attacked.
        x: the samples, ``(N, *shape)``.
        file: to be named in a message.

    Raises:
        CheckpointError: a distance is not that of its point.
    """
    if found.points.shape != x.shape:
        raise CheckpointError(f"{file} is damaged: its inputs are of shape {tuple(found.points.shape[1:])}")
    points, nearest = found.points.to(x), found.nearest
    rows = torch.isfinite(nearest).nonzero().squeeze(1)
    measured = judge.distance(x[rows.to(x.device)], points[rows.to(x.device)]).cpu()
    if not torch.allclose(measured, nearest[rows], rtol=1e-9, atol=0):
        raise CheckpointError(f"{file} is damaged: a distance in it is not that of its adversarial example")
    for part in torch.split(rows, _AGAIN):
        same = judge.labels(points[part.to(x.device)]).cpu() == found.prediction[part]
        found.distances[:, part[same]] = torch.inf
        found.points[part[same]] = x[part[same].to(x.device)].to(found.points)
    return found
