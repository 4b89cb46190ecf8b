"""All attacks on all samples, a batch at a time."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lipcert.attacks.judge import Judge
from lipcert.attacks.methods import METHODS, Method, Strength
from lipcert.attacks.record import Attacked, read_attacked
from lipcert.certify.identity import versions, weights_digest
from lipcert.digests import digest
from lipcert.errors import ConfigError, CounterexampleError, ShapeError
from lipcert.graph.capture import in_eval_mode
from lipcert.train.interrupt import Interrupted
from lipcert.train.safefile import write_file

__all__ = ["attack", "methods_for"]

_SAVED = 20.0  # seconds between two times that a file is written


def methods_for(names: Sequence[str] | None, classes: int) -> tuple[Method, ...]:
    """The attacks of these names, by default all that there are for so many classes.

    Raises:
        ConfigError: an unknown name, or one for more classes.
    """
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
    spare: bool = False,
    arithmetic: str = "float32",
    batch_size: int = 200,
    file: Path | None = None,
    about: dict[str, Any] | None = None,
    progress: Callable[[float, str], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Attacked:
    """Look for the nearest adversarial example of every sample that is classified rightly.

    Attacks that look for the nearest one run once; the others at each radius, on the samples for which nothing was
    found within it yet, those that are certified there among them: a certificate is put to the test, not trusted.

    Args:
        module: raw input in [0, 1] → logits (n, C), in float32 or float64.
        x: ``(N, *shape)``, floating-point, in [0, 1].
        y: labels (N,).
        epsilons: ℓ2 radii, in the units of x.
        methods: names of :data:`lipcert.attacks.METHODS`; by default all that there are for so many classes.
        strength: how hard they try.
        radius: (N,), certified radii to be held against what is found.
        spare: no attacks within a radius on samples that are certified there, which takes a fraction of the time.
        arithmetic: in which predictions are taken, as in :class:`lipcert.attacks.Judge`: that of the certificate.
        batch_size: samples at a time. What is found depends on it a little, as attacks are random.
        file: kept up to date; an attack that was stopped goes on from it.
        about: kept in the file.
        progress: is told the share that is done, and what is being done.
        stop: asked between batches; if it says so, the file is written and the attack ends.

    Raises:
        CounterexampleError: an adversarial example is nearer than the certified radius. Nothing else is tried, and if
            there is a ``file``, the two inputs are beside it, in ``NAME.counterexample.safetensors``.
        ConfigError: a missing library, an unknown attack, or a file of another attack.
        ShapeError: inputs that do not fit.
        Interrupted: ``stop`` said so.

    Example:
        >>> torch.manual_seed(0)  # doctest: +ELLIPSIS
        <torch._C.Generator object at ...>
        >>> net, x = nn.Linear(3, 2).eval(), torch.rand(8, 3)
        >>> found = attack(net, x, net(x).argmax(1), epsilons=[0.1], methods=["ddn"])  # doctest: +SKIP
        >>> found.clean_accuracy >= found.accuracy_at(0.1)  # doctest: +SKIP
        True
    """
    strength = strength or Strength()
    _check(x, y, epsilons, radius)
    judge = Judge(module, arithmetic)
    prediction = _predictions(judge, x, batch_size)
    chosen = methods_for(methods, _classes(module, x))
    tries = json.dumps([[m.name for m in chosen], list(epsilons), vars(strength), batch_size, arithmetic, spare])
    key = digest({"x": x, "y": y.to(torch.int64)}, weights_digest(module), tries)
    found = _begun(file, key) or Attacked(
        key,
        tuple(m.name for m in chosen),
        tuple(map(float, epsilons)),
        arithmetic,
        {**versions(), "weights": weights_digest(module), **(about or {})},
        y.to(torch.int64).cpu(),
        prediction.cpu(),
        torch.full((len(chosen), len(x)), torch.inf, dtype=torch.float64),
        x.detach().cpu().clone(),
        {},
        set(),
    )
    if found.finished:
        return found
    with in_eval_mode(module):
        work = _Work(
            judge, copy.deepcopy(module).float().requires_grad_(False), x, y, strength, found, radius, spare, file
        )
        units = list(_units(chosen, found, batch_size))
        for number, (method, epsilon, start) in enumerate(units):
            if progress is not None:
                progress(number / len(units), f"{method.title}{'' if method.nearest else f' at {epsilon:.4g}'}")
            if stop():
                work.save()
                raise Interrupted("stopped")
            work.do(method, epsilon, slice(start, start + batch_size))
    found.finished = True
    work.save()
    return found


@dataclass(eq=False)
class _Work:
    """Attacks on some of the samples; ``target`` is the network in float32, which the libraries work in."""

    judge: Judge
    target: nn.Module
    x: Tensor
    y: Tensor
    strength: Strength
    found: Attacked
    radius: Tensor | None
    spare: bool
    file: Path | None
    saved: float = field(default_factory=time.monotonic)

    def do(self, method: Method, epsilon: float, part: slice) -> None:
        """One attack on one batch, unless it is done already."""
        unit = f"{method.name}@{epsilon!r}:{part.start}"
        if unit in self.found.done:
            return
        wanted = self.found.correct & (method.nearest | (self.found.distance > epsilon))
        if self.spare and self.radius is not None and not method.nearest:
            wanted &= self.radius.cpu() <= epsilon
        rows, began = part.start + wanted[part].nonzero().squeeze(1), time.perf_counter()
        if len(rows):
            self._attack(method, epsilon, rows)
            self._compare(rows)
        spent = self.found.seconds.get(method.name, 0.0) + time.perf_counter() - began
        self.found.seconds[method.name] = spent
        self.found.done.add(unit)
        if time.monotonic() - self.saved > _SAVED:
            self.save()

    def _attack(self, method: Method, epsilon: float, rows: Tensor) -> None:
        here = rows.to(self.x.device)
        x, y = self.x[here], self.y[here]
        with torch.random.fork_rng([x.device] if x.device.type == "cuda" else []):  # the libraries seed torch's own
            torch.manual_seed(self.strength.seed)
            for candidates in method.run(self.target, x.float(), y, epsilon, self.strength):
                self.found.put(method.name, rows, *self.judge.nearest(x, y, candidates))

    def _compare(self, rows: Tensor) -> None:
        """Hold what was found against the certified radii.

        Raises:
            CounterexampleError: one is wrong.
        """
        if self.radius is None:
            return
        nearer = self.found.distance[rows] < self.radius.cpu()[rows]
        for i in rows[nearer].tolist():
            x, point, radius = self.x[i], self.found.points[i].to(self.x.device), float(self.radius[i])
            if self.judge.is_counterexample(x, point, int(self.found.labels[i]), radius):
                distance = float(self.judge.distance(x[None], point[None]))
                raise CounterexampleError(i, distance, radius, self._kept(i, distance, radius))

    def _kept(self, i: int, distance: float, radius: float) -> Path | None:
        """Write the two inputs of a counterexample beside the file."""
        if self.file is None:
            return None
        x, point = self.x[i].cpu(), self.found.points[i]
        about = {
            "sample": i,
            "label": int(self.found.labels[i]),
            "predicted": int(self.judge.labels(point[None].to(self.x.device))),
            "distance": distance,
            "radius": radius,
            "arithmetic": self.judge.arithmetic,
            "about": self.found.about,
        }
        beside = self.file.with_name(f"{self.file.stem}.counterexample.safetensors")
        write_file(beside, {"input": x, "adversarial": point}, {"counterexample": json.dumps(about)})
        return beside

    def save(self) -> None:
        """Write the file, if there is to be one."""
        if self.file is not None:
            self.found.write(self.file)
        self.saved = time.monotonic()


def _check(x: Tensor, y: Tensor, epsilons: Sequence[float], radius: Tensor | None) -> None:
    if not x.is_floating_point() or x.ndim < 2 or y.shape != x.shape[:1] or not len(x):
        raise ShapeError(f"an attack takes inputs (N, *shape) and N labels; got {tuple(x.shape)} and {tuple(y.shape)}")
    if not (float(x.min()) >= 0 and float(x.max()) <= 1):
        raise ShapeError("an attack takes inputs in [0, 1]: a normalisation belongs into the model")
    if radius is not None and radius.shape != y.shape:
        raise ShapeError(f"there are {len(y)} samples, and radii of shape {tuple(radius.shape)}")
    if not all(0 < e < float("inf") for e in epsilons):
        raise ConfigError(f"the radii of an attack are positive and finite; got {list(epsilons)}")


def _classes(module: nn.Module, x: Tensor) -> int:
    with in_eval_mode(module), torch.no_grad():
        own = next((p.dtype for p in module.parameters()), x.dtype)
        shape = module(x[:1].to(own)).shape
    if len(shape) != 2 or shape[1] < 2:
        raise ShapeError(f"an attack is for a classifier with logits (n, C); this module's are {tuple(shape)}")
    return int(shape[1])


def _predictions(judge: Judge, x: Tensor, size: int) -> Tensor:
    return torch.cat([judge.labels(x[i : i + size]) for i in range(0, len(x), size)])


def _units(chosen: Sequence[Method], found: Attacked, size: int) -> Iterator[tuple[Method, float, int]]:
    for method in chosen:
        for epsilon in (0.0,) if method.nearest else sorted(found.epsilons):
            for start in range(0, len(found.labels), size):
                yield method, epsilon, start


def _begun(file: Path | None, key: str) -> Attacked | None:
    if file is None or not file.exists():
        return None
    found = read_attacked(file)
    if found.key != key:
        raise ConfigError(
            f"{file} holds another attack: of other weights, samples, attacks, radii or batches. Choose another file, "
            "or delete it."
        )
    return found
