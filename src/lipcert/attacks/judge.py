"""Whether a candidate is an adversarial example, and how far it is from the input."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lipcert.certify.logits import exact_logits, pair_errors
from lipcert.errors import ConfigError
from lipcert.graph import Graph, trace
from lipcert.graph.capture import in_eval_mode, ordinary_mode

__all__ = ["Judge", "copied"]

_BEYOND = (1.0, 1 + 2.0**-10, 1 + 2.0**-6)  # how far along the ray a candidate is looked for that just is none
_HALVINGS = 14  # of the way from the input to it
_UP = 1 + 2.0**-40  # what float64 may have lost of a norm: sums of up to 2^12 terms, and many more in practice


def copied(module: nn.Module) -> nn.Module:
    """A copy to be converted or attacked, the module itself left alone.

    Raises:
        ConfigError: it cannot be copied.
    """
    try:
        return copy.deepcopy(module)
    except (RuntimeError, TypeError) as error:  # weights that a forward pass has computed, as old weight_norm leaves
        raise ConfigError(f"the network cannot be copied, which an attack needs: {error}") from error


class Judge:
    """Executes a network as its certificate says, and measures in float64.

    Args:
        module: raw input → logits, in float32 or float64.
        arithmetic: in which predictions are taken: ``"float32"``, ``"float64"``, or ``"real"``, which is looked at in
            float64 and, where a certificate is at stake, in intervals.

    Raises:
        ConfigError: there is no such execution of this module.
    """

    def __init__(self, module: nn.Module, arithmetic: str) -> None:
        own = {t.dtype for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()}
        if arithmetic not in ("float32", "float64", "real"):
            raise ConfigError(f"an attack judges in float32, float64 or real arithmetic, not in {arithmetic!r}")
        if len(own) > 1 or not own <= {torch.float32, torch.float64}:
            raise ConfigError(f"attacks are for networks in float32 or in float64, not in {sorted(map(str, own))}")
        self.arithmetic = arithmetic
        self.dtype = torch.float32 if arithmetic == "float32" else torch.float64
        if own and own != {self.dtype}:
            if self.dtype == torch.float32:
                raise ConfigError("the network is in float64: its float32 execution is another network")
            module = copied(module).double()  # the same numbers
        self.module = module
        self._graph: Graph | None = None

    def labels(self, x: Tensor) -> Tensor:
        """Predicted classes (n,), −1 where a logit is not finite."""
        with in_eval_mode(self.module), ordinary_mode(), torch.no_grad():
            logits: Tensor = self.module(x.to(self.dtype))
        found = logits.argmax(1)
        return torch.where(torch.isfinite(logits).all(1), found, torch.full_like(found, -1))

    def nearest(self, x: Tensor, y: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor]:
        """The nearest adversarial example that was seen on the way from each input to its candidate.

        Args:
            x: inputs ``(n, *shape)``, classified as y.
            y: (n,).
            candidates: of the shape of x; not finite ones are none.

        Returns:
            points of the shape and dtype of x, in [0, 1], and distances (n,) in float64, infinite where there is none.
        """
        step = torch.nan_to_num(candidates.detach().to(x) - x, nan=0.0, posinf=0.0, neginf=0.0)
        share = (-1, *(1,) * (x.ndim - 1))

        def at(t: Tensor, rows: Tensor) -> Tensor:
            return (x[rows] + t.to(x).reshape(share) * step[rows]).clamp(0.0, 1.0)

        best, wrong = self._outside(x, y, at)
        left = wrong.nonzero().squeeze(1)
        low, high = torch.zeros_like(best[left]), best[left]
        for _ in range(_HALVINGS if len(left) else 0):
            middle = (low + high) / 2
            there = self.labels(at(middle, left)) != y[left]
            low, high = torch.where(there, low, middle), torch.where(there, middle, high)
        points, distance = x.clone(), torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        found = at(high, left)
        sure = self.labels(found) != y[left]  # once more: in another batch float32 may have rounded otherwise
        left, found = left[sure], found[sure]
        points[left], distance[left] = found, self.distance(x[left], found)
        return points, distance

    def _outside(self, x: Tensor, y: Tensor, at: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """The first share of the way at which each is classified otherwise, and whether there is one."""
        best, wrong = torch.ones(len(x), device=x.device, dtype=torch.float64), torch.zeros_like(y, dtype=torch.bool)
        for t in _BEYOND:
            rows = (~wrong).nonzero().squeeze(1)
            if len(rows):
                there = rows[self.labels(at(torch.full((len(rows),), t, device=x.device), rows)) != y[rows]]
                best[there], wrong[there] = t, True
        return best, wrong

    @staticmethod
    def distance(x: Tensor, points: Tensor) -> Tensor:
        """ℓ2 distances (n,) in float64, rounded up."""
        found: Tensor = torch.linalg.vector_norm((points.double() - x.double()).flatten(1), dim=1)
        return found * _UP

    def is_counterexample(
        self, x: Tensor, point: Tensor, prediction: int, radius: float, *, seen: bool = False
    ) -> bool:
        """Whether a point (of shape ``*shape``) proves a certified radius wrong, whatever rounding did here.

        Args:
            x, point, prediction, radius: the input, what was found, the certified class and how far it was certified.
            seen: the point was executed before, in a batch, and classified otherwise. A radius of an execution is one
                of every order of its sums, so that this counts, even if alone it comes out as it should.
        """
        one, other = x[None], point[None]
        if not float(self.distance(one, other)) < radius:
            return False
        if self.arithmetic != "real":
            return seen or int(self.labels(other)) != prediction
        if self._graph is None:
            self._graph = trace(self.module, tuple(x.shape))
        logits, errors = exact_logits(self._graph, [other.double()], each=True)
        off = pair_errors(errors, torch.tensor([prediction], device=errors.device))[0]
        return bool((logits[0] - logits[0, prediction] > off).any())
