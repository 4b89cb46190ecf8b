"""What layers that divide themselves by a Lipschitz bound share: warm norms, a proved excess, and a folded form."""

from __future__ import annotations

import contextlib
import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from lipcert.bounds.lipschitz import lipschitz
from lipcert.digests import digest
from lipcert.errors import BoundError, ConfigError, ShapeError
from lipcert.graph.capture import is_read

__all__ = ["SLACK_FOLDED", "LinearMap", "Normalised", "plain_precision", "positive", "settled"]

LinearMap = Callable[[Tensor], Tensor]
"""A batch of rows to a batch of rows, linearly."""

_ROUNDING = 2.0**-14  # what the excess is larger by: the estimate and the weights may be read in another precision
_SLACK, _DENSE = 5e-3, 512  # of the bound that the excess comes from: quick, as it is proved at each evaluation
_SETTLE = 30  # power iterations, after which an estimate is as good as that of weights that stand still
_ZERO = 1e-300  # what the bound of a map of zeros may be, by its own rounding
SLACK_FOLDED = 1e-3
"""That of a folded layer, which is proved once."""


def plain_precision(like: Tensor) -> contextlib.AbstractContextManager[object]:
    """Norms are computed in the dtype of the weights, whatever autocast is around."""
    kind = like.device.type
    if torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return contextlib.nullcontext()


def positive(lipschitz: object, name: str = "lipschitz") -> float:
    """κ, or another number, checked.

    Raises:
        ConfigError: it is not a positive number.
    """
    if isinstance(lipschitz, bool) or not isinstance(lipschitz, (int, float)) or not 0 < lipschitz < math.inf:
        raise ConfigError(f"{name} must be a positive number; got {lipschitz!r}")
    return float(lipschitz)


def _norm(y: Tensor) -> Tensor:
    """‖y‖, which neither overflows nor underflows before it has to; not 0."""
    least = torch.finfo(y.dtype).tiny
    size = y.detach().abs().amax().clamp_min(least)
    return (size * (y / size).square().sum().clamp_min(1e-30).sqrt()).clamp_min(least)


@contextlib.contextmanager
def settled(module: nn.Module) -> Iterator[None]:
    """Let the estimates of all layers in a module catch up with its weights, and put them back afterwards.

    In training each u is some steps behind, so that b is too small and the network larger than the one that is proved
    when it is put into eval mode. What is looked at in between is to be that one, but for the slack of the proof.
    """
    layers = [m for m in module.modules() if isinstance(m, Normalised)]
    kept = [[u.clone() for u in layer.vectors()] for layer in layers]
    try:
        for layer in layers:
            layer.advance(_SETTLE)
        yield
    finally:
        with torch.no_grad():
            for layer, vectors in zip(layers, kept, strict=True):
                for u, before in zip(layer.vectors(), vectors, strict=True):
                    u.copy_(before)


def _seal_again(module: nn.Module, _: object) -> None:
    """After ``load_state_dict``: in eval mode the guarantee is to hold for the new weights."""
    if not module.training:
        module.train(False)


class Normalised(nn.Module):
    """A layer ``y = (κ / (e·b))·f(x)``, b being a differentiable estimate of a Lipschitz bound of the plain map f.

    b is made of norms ‖A‖ ≈ ‖A·u‖ of linear maps of f. Each u is a buffer that moves by one step of power iteration in
    each forward pass in train mode: so b is a function of the weights and of u alone, which a trace sees as such, and
    its gradient is that of the norm as far as u is converged.

    b is an estimate, from below. The excess e is what makes up for it: the quotient of a proved upper bound and of b,
    both at the present weights. In train mode it is 1; in eval mode it is proved (:meth:`seal`) unless the state says
    that it was, for just these weights. A state from a file is taken at its word: what a network of somebody else's is
    worth says :func:`lipcert.lipschitz`, which sees the factors as they are. :meth:`folded` gives a plain module with
    the factor in its weights.

    Subclasses say what f is (:meth:`plain`) and what b is (:meth:`maps`, :meth:`combined`).

    Args:
        input_shape: of one sample.
        sources: the shape of one row of each map.
        lipschitz: κ.

    Raises:
        ConfigError: κ is not a positive number.
    """

    excess: Tensor
    sealed: Tensor

    def __init__(self, input_shape: Sequence[int], sources: Sequence[Sequence[int]], lipschitz: float) -> None:
        super().__init__()
        self.lipschitz, self.input_shape = positive(lipschitz), tuple(input_shape)
        self._count = len(sources)
        self._sealed_at: tuple[object, ...] | None = None  # a cheap look at what the weights were then
        for i, shape in enumerate(sources):
            vector = torch.randn(1, *shape)
            self.register_buffer(f"vector_{i}", vector / vector.norm())
        self.register_buffer("excess", torch.ones(()))
        self.register_buffer("sealed", torch.zeros((), dtype=torch.int64))  # for which weights; 0 for none
        self.register_load_state_dict_post_hook(_seal_again)  # type: ignore[no-untyped-call]

    # --- what subclasses say -------------------------------------------------------------------------------
    @abstractmethod
    def plain(self) -> nn.Module:
        """f, of ordinary layers that share this one's weights."""

    @abstractmethod
    def maps(self) -> list[LinearMap]:
        """The linear maps whose norms b is made of."""

    def combined(self, norms: Sequence[Tensor]) -> Tensor:
        """The estimate b, from their norms."""
        (norm,) = norms
        return norm

    # --- the factor -----------------------------------------------------------------------------------------
    def vectors(self) -> list[Tensor]:
        """The vectors u, one for each map."""
        return [self.get_buffer(f"vector_{i}") for i in range(self._count)]

    def estimate(self) -> Tensor:
        """The estimate b at the present weights: a scalar, differentiable in them."""
        vectors = [u.clone() for u in self.vectors()]  # the next forward pass moves them; autograd may still need these
        with plain_precision(self.excess):
            return self.combined([_norm(m(u)) for m, u in zip(self.maps(), vectors, strict=True)])

    def factor(self) -> Tensor:
        """κ / (e·b)."""
        return self.lipschitz / (self.excess.clone() * self.estimate())

    def advance(self, steps: int = 1) -> None:
        """Move each u towards the leading singular vector of its map."""
        with torch.inference_mode(False), torch.no_grad(), plain_precision(self.excess):
            for _ in range(steps):
                for m, u in zip(self.maps(), self.vectors(), strict=True):
                    with torch.enable_grad():
                        leaf = u.detach().requires_grad_()
                        image = m(leaf)
                        (back,) = torch.autograd.grad(image, leaf, image.detach())
                    size = back.norm()
                    u.copy_(torch.where((size > 0) & torch.isfinite(size), back / size, u))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        if tuple(x.shape[1:]) != self.input_shape:
            raise ShapeError(
                f"{type(self).__name__} was made for inputs of shape {self.input_shape}, on which its bound depends; "
                f"got {tuple(x.shape[1:])}. Make a layer for that shape."
            )
        if self.training:
            self.advance()
        elif not is_read() and not torch.compiler.is_compiling() and self._sealed_at != self._glance():
            self.train(False)  # the weights were changed since
        result: Tensor = self.factor() * self.apply_plain(x)
        return result

    @abstractmethod
    def apply_plain(self, x: Tensor) -> Tensor:
        """f(x)."""

    # --- the guarantee --------------------------------------------------------------------------------------
    def _weights(self) -> list[Tensor]:
        """What b depends on."""
        return [*self.parameters(), *self.vectors()]

    def _glance(self) -> tuple[object, ...]:
        """Changes with the weights, but for changes that torch does not see (``p.data``, numpy)."""
        return tuple((id(t), t.dtype, 0 if t.is_inference() else t._version) for t in (*self._weights(), self.excess))

    def _identity(self) -> int:
        """A number that tells weights apart, bit by bit; not 0."""
        named = {str(i): t.detach().cpu().contiguous() for i, t in enumerate(self._weights())}
        return int(digest(named)[:15], 16) + 1

    def _upper(self, slack: float) -> float:
        """A proved upper bound of f's Lipschitz constant."""
        dense = _DENSE if slack >= _SLACK else None
        plain = self.plain()
        modes = [(m, m.training) for m in plain.modules()]
        try:
            return float(lipschitz(plain.eval(), self.input_shape, guarantee="upper", slack=slack, dense_limit=dense))
        finally:
            for m, training in modes:
                m.training = training

    def seal(self, slack: float = _SLACK) -> float:
        """Prove the excess anew; returns it.

        Args:
            slack: how much larger than it has to be it may be, relatively; less takes longer.

        Raises:
            BoundError: the weights are too large or too small for the factor to be a number, or in half precision.
            lipcert.errors.ModuleStateError: they are not finite.
        """
        if self.excess.dtype not in (torch.float32, torch.float64):
            raise BoundError(
                f"{type(self).__name__}: a factor in {self.excess.dtype} is too coarse for a guarantee. Keep the "
                "weights in float32, under torch.autocast if it is to be fast."
            )
        with torch.inference_mode(False), torch.no_grad():
            upper = self._upper(slack)
            here = float(self.estimate())
            estimate = min(here, float(copy.deepcopy(self).double().estimate()))  # a GPU's TF32 is not to stand in it
            excess = 1.0 if upper < _ZERO else upper / estimate * (1 + _ROUNDING)
            self.excess.fill_(excess)
            factor, near = float(self.factor()), upper < _ZERO or math.isclose(here, estimate, rel_tol=1e-2)
            if not (near and 0 < factor < math.inf and 0 < float(self.excess) < math.inf):
                raise BoundError(
                    f"{type(self).__name__}: its weights are of a size that no factor makes up for in "
                    f"{self.excess.dtype} (bound {upper:.3g}). Rescale them."
                )
            self.sealed.fill_(self._identity())
            self._sealed_at = self._glance()
        return excess

    def train(self, mode: bool = True) -> Normalised:
        """As of every module; in eval mode the layer is κ-Lipschitz, proved for the weights that it has then."""
        super().train(mode)
        if mode:
            self.excess.fill_(1.0)
            self.sealed.zero_()
        elif int(self.sealed) != self._identity():
            self.seal()
        else:
            self._sealed_at = self._glance()
        return self

    def folded(self, *, prove: bool = True) -> nn.Module:
        """The same function as ordinary layers with fixed weights: at most κ-Lipschitz, by a proof if ``prove``."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """What is shown of it."""
        return f"{self.input_shape}, lipschitz={self.lipschitz:g}"
