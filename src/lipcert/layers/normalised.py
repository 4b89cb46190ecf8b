"""What layers that divide themselves by a Lipschitz bound share: warm norms, a proved excess, and a folded form."""

from __future__ import annotations

import contextlib
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lipcert.bounds.lipschitz import lipschitz
from lipcert.errors import ConfigError, ShapeError

__all__ = ["SLACK_FOLDED", "LinearMap", "Normalised", "plain_precision"]

LinearMap = Callable[[Tensor], Tensor]
"""A batch of rows to a batch of rows, linearly."""

_SETTLING = 30  # steps of power iteration at the start, and before an excess is proved
_ROUNDING = 2.0**-14  # what the excess is larger by: the estimate and the weights may be read in another precision
_SLACK, _DENSE = 5e-3, 512  # of the bound that the excess comes from: quick, as it is proved at each evaluation
SLACK_FOLDED = 1e-3
"""That of a folded layer, which is proved once."""


def plain_precision(like: Tensor) -> contextlib.AbstractContextManager[object]:
    """Norms are computed in the dtype of the weights, whatever autocast is around."""
    kind = like.device.type
    if torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


class Normalised(nn.Module):
    """A layer ``y = (κ / (e·b))·f(x)``, b being a differentiable estimate of a Lipschitz bound of the plain map f.

    b is made of norms ‖A‖ ≈ ‖A·u‖ of linear maps of f. Each u is a buffer that moves by one step of power iteration in
    each forward pass in train mode: so b is a function of the weights and of u alone, which a trace sees as such, and
    its gradient is that of the norm as far as u is converged.

    b is an estimate, from below. The excess e is what makes up for it: the quotient of a proved upper bound and of b,
    both at the present weights. It is proved again whenever the layer is put into eval mode after its weights have
    changed (:meth:`seal`), and is 1 before. :meth:`folded` gives a plain module with the factor in its weights.

    Subclasses say what f is (:meth:`plain`) and what b is (:meth:`maps`, :meth:`combined`).

    Args:
        input_shape: of one sample.
        sources: the shape of one row of each map.
        lipschitz: κ.

    Raises:
        ConfigError: κ is not a positive number.
    """

    excess: Tensor

    def __init__(self, input_shape: Sequence[int], sources: Sequence[Sequence[int]], lipschitz: float) -> None:
        super().__init__()
        if isinstance(lipschitz, bool) or not isinstance(lipschitz, (int, float)) or not 0 < lipschitz < math.inf:
            raise ConfigError(f"lipschitz must be a positive number; got {lipschitz!r}")
        self.lipschitz, self.input_shape = float(lipschitz), tuple(input_shape)
        self._count = len(sources)
        self._sealed_at: tuple[object, ...] | None = None
        for i, shape in enumerate(sources):
            vector = torch.randn(1, *shape)
            self.register_buffer(f"vector_{i}", vector / vector.norm())
        self.register_buffer("excess", torch.ones(()))

    # --- what subclasses say -------------------------------------------------------------------------------
    @abstractmethod
    def plain(self) -> nn.Module:
        """f, of ordinary layers that share this one's weights."""

    @abstractmethod
    def maps(self) -> list[LinearMap]:
        """The linear maps whose norms b is made of."""

    def combined(self, norms: Sequence[Tensor]) -> Tensor:
        """B from their norms."""
        (norm,) = norms
        return norm

    # --- the factor -----------------------------------------------------------------------------------------
    def vectors(self) -> list[Tensor]:
        """The vectors u, one for each map."""
        return [self.get_buffer(f"vector_{i}") for i in range(self._count)]

    def estimate(self) -> Tensor:
        """The estimate b at the present weights: a scalar, differentiable in them."""
        with plain_precision(self.excess):
            norms = [
                m(u).square().sum().clamp_min(1e-30).sqrt() for m, u in zip(self.maps(), self.vectors(), strict=True)
            ]
            return self.combined(norms)

    def factor(self) -> Tensor:
        """κ / (e·b)."""
        return self.lipschitz / (self.excess * self.estimate())

    @torch.no_grad()
    def advance(self, steps: int = 1) -> None:
        """Move each u towards the leading singular vector of its map."""
        with plain_precision(self.excess):
            for _ in range(steps):
                for m, u in zip(self.maps(), self.vectors(), strict=True):
                    with torch.enable_grad():
                        leaf = u.detach().requires_grad_()
                        image = m(leaf)
                        (back,) = torch.autograd.grad(image, leaf, image.detach())
                    size = back.norm()
                    if bool(size > 0) and bool(torch.isfinite(size)):
                        u.copy_(back / size)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        if tuple(x.shape[1:]) != self.input_shape:
            raise ShapeError(
                f"{type(self).__name__} was made for inputs of shape {self.input_shape}, on which its bound depends; "
                f"got {tuple(x.shape[1:])}. Make a layer for that shape."
            )
        if self.training:
            self.advance()
        result: Tensor = self.factor() * self.apply_plain(x)
        return result

    @abstractmethod
    def apply_plain(self, x: Tensor) -> Tensor:
        """f(x)."""

    # --- the guarantee --------------------------------------------------------------------------------------
    def _state(self) -> tuple[object, ...]:
        """Changes whenever the weights do, or the vectors."""
        return tuple((id(t), t._version) for t in (*self.parameters(), *self.vectors()))

    def _upper(self, slack: float) -> float:
        """A proved upper bound of f's Lipschitz constant."""
        dense = _DENSE if slack >= _SLACK else None
        plain = self.plain().eval()
        return float(lipschitz(plain, self.input_shape, guarantee="upper", slack=slack, dense_limit=dense))

    @torch.no_grad()
    def seal(self, slack: float = _SLACK) -> float:
        """Prove the excess anew; returns it.

        Args:
            slack: how much larger than it has to be it may be, relatively; less takes longer.

        Raises:
            BoundError: the weights are not finite, or too large.
        """
        self.advance(_SETTLING)
        excess = self._upper(slack) / float(self.estimate()) * (1 + _ROUNDING)
        self.excess.fill_(excess)
        self._sealed_at = self._state()
        return excess

    def train(self, mode: bool = True) -> Normalised:
        """As of every module; in eval mode the layer is κ-Lipschitz, proved for the weights that it has then."""
        super().train(mode)
        if not mode and self._sealed_at != self._state():
            self.seal()
        return self

    def folded(self) -> nn.Module:
        """The same function as ordinary layers with fixed weights: at most κ-Lipschitz, by a proof."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """What is shown of it."""
        return f"{self.input_shape}, lipschitz={self.lipschitz:g}"
