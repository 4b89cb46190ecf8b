"""Residual blocks ``y = H x + G φ(W x)`` that are κ-Lipschitz by LipLT's bound of one block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lipcert.errors import ConfigError
from lipcert.layers.activations import make_activation, slopes_by_name
from lipcert.layers.linear import orthogonal_at_centre
from lipcert.layers.normalised import SLACK_FOLDED, LinearMap, Normalised
from lipcert.layers.parts import Block, Pool, conv_shape, image_shape, scaled_copy, whole, without_bias

__all__ = ["ResidualConv2d", "ResidualLinear"]

_SHORTCUTS = ("identity", "pool", "learned")


class _Residual(Normalised):
    """What dense and convolutional blocks share."""

    shortcut: nn.Module
    inner: nn.Linear | nn.Conv2d
    outer: nn.Linear | nn.Conv2d

    def _finish(self, activation: str, hidden: int) -> None:
        self.act = make_activation(activation, hidden)
        self.centre, self.radius = slopes_by_name(activation)

    def plain(self) -> nn.Module:
        """``H x + G φ(W x)``."""
        return Block(self.shortcut, self.inner, self.act, self.outer, None)

    def _shortcut(self, x: Tensor) -> Tensor:
        shortcut = self.shortcut
        return without_bias(shortcut)(x) if isinstance(shortcut, (nn.Linear, nn.Conv2d)) else shortcut(x)

    def maps(self) -> list[LinearMap]:
        """W, G, and H + c·GW."""
        w, g = without_bias(self.inner), without_bias(self.outer)
        return [w, g, lambda u: self._shortcut(u) + self.centre * g(w(u))]

    def combined(self, norms: Sequence[Tensor]) -> Tensor:
        """``‖H + cGW‖ + r‖G‖‖W‖``."""
        inner, outer, both = norms
        return both + self.radius * outer * inner

    def apply_plain(self, x: Tensor) -> Tensor:
        """``H x + G φ(W x)``."""
        result: Tensor = self.shortcut(x) + self.outer(self.act(self.inner(x)))
        return result

    def folded(self, *, prove: bool = True) -> nn.Module:
        """The block with its factor in H and G: at most κ-Lipschitz."""
        if prove:
            self.seal(SLACK_FOLDED)
        with torch.no_grad():
            factor = self.factor()
            outer, inner = scaled_copy(self.outer, factor), scaled_copy(self.inner, torch.ones(()))
            if isinstance(self.shortcut, (nn.Linear, nn.Conv2d)):
                return Block(scaled_copy(self.shortcut, factor), inner, self.act, outer, None).eval()
            return Block(self.shortcut, inner, self.act, outer, float(factor)).eval()


def _check_shortcut(shortcut: str, same: bool, may_pool: bool) -> None:
    if shortcut not in _SHORTCUTS:
        raise ConfigError(f"shortcut must be one of {', '.join(map(repr, _SHORTCUTS))}; got {shortcut!r}")
    if shortcut == "identity" and not same:
        raise ConfigError("shortcut='identity' needs a result of the input's shape: use 'pool' or 'learned'")
    if shortcut == "pool" and not may_pool:
        raise ConfigError(
            "shortcut='pool' needs as many channels as the input has, or more, and sides that the stride divides"
        )


class ResidualLinear(_Residual):
    """``y = (κ/b)·(H x + G φ(W x + w₀) + g₀)``, b = ‖H + cGW‖ + r‖G‖‖W‖ and φ with slopes in [c − r, c + r].

    It starts from W with orthonormal columns, or rows, and G = −2·HWᵀ, of which b = ‖H‖ where there are at least as
    many hidden features as there are inputs: neither the signal nor its gradient changes its size in depth.

    Args:
        features: of the input.
        hidden: rows of W; as many as ``features`` by default.
        out_features: of the result; as many as ``features`` by default.
        shortcut: H: ``"identity"``, or ``"learned"``, a matrix.
        activation: φ, see ``lipcert.layers.ACTIVATIONS``.
        lipschitz: κ.

    Shapes: (N, features) → (N, out_features).

    Raises:
        ConfigError: a size, shortcut, activation or κ that does not fit.
        ShapeError: an input of another shape.

    Source: the bound is that of Fazlyab, Entesari, Roy, Chellappa, NeurIPS 2023; dividing by it is ours.

    >>> import lipcert
    >>> block = ResidualLinear(6, lipschitz=1.5).eval()
    >>> float(lipcert.lipschitz(block, (6,), guarantee="upper")) <= 1.501
    True
    """

    def __init__(
        self,
        features: int,
        hidden: int | None = None,
        *,
        out_features: int | None = None,
        shortcut: str = "identity",
        activation: str = "relu",
        lipschitz: float = 1.0,
    ) -> None:
        hidden, out = whole("hidden", hidden, features), whole("out_features", out_features, features)
        _check_shortcut(shortcut, out == features, False)
        super().__init__((features,), [(features,), (hidden,), (features,)], lipschitz)
        self.shortcut = nn.Identity() if shortcut == "identity" else nn.Linear(features, out, bias=False)
        self.inner, self.outer = nn.Linear(features, hidden), nn.Linear(hidden, out)
        self._finish(activation, hidden)
        with torch.no_grad():
            nn.init.orthogonal_(self.inner.weight)
            self.outer.weight.copy_(-2 * self.inner.weight.T if out == features else 0.0 * self.outer.weight)
            if isinstance(self.shortcut, nn.Linear):
                nn.init.orthogonal_(self.shortcut.weight)
                self.outer.weight.copy_(-2 * self.shortcut.weight @ self.inner.weight.T)
            nn.init.zeros_(self.outer.bias)


class ResidualConv2d(_Residual):
    """``y = (κ/b)·(H x + G φ(W x + w₀) + g₀)`` of images: W and G are convolutions, b = ‖H + cGW‖ + r‖G‖‖W‖.

    Zeros around the images, and norms on images of that size. It starts as :class:`ResidualLinear` does, in each pixel.

    Args:
        input_shape: (C, H, W) of one image.
        channels: of the result; C by default.
        hidden: channels of W x; as many as ``channels`` by default.
        kernel_size: of W and G, odd.
        stride: of W; H then has it too.
        shortcut: H: ``"identity"``, ``"pool"`` (means over stride × stride pixels, times the stride, with channels of
            zeros behind), or ``"learned"`` (a convolution of kernel and stride ``stride``). By default the identity
            where the shape stays, else learned.
        activation: φ.
        lipschitz: κ.

    Shapes: (N, C, H, W) → (N, channels, H/stride, W/stride).

    Raises:
        ConfigError: a size, shortcut, activation or κ that does not fit.
        ShapeError: an input of another shape.

    >>> ResidualConv2d((4, 8, 8), 8, stride=2)(torch.rand(2, 4, 8, 8)).shape
    torch.Size([2, 8, 4, 4])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        channels: int | None = None,
        *,
        hidden: int | None = None,
        kernel_size: int = 3,
        stride: int = 1,
        shortcut: str | None = None,
        activation: str = "relu",
        lipschitz: float = 1.0,
    ) -> None:
        shape = image_shape(input_shape)
        into, out = shape[0], whole("channels", channels, shape[0])
        hidden, stride = whole("hidden", hidden, out), whole("stride", stride)
        if whole("kernel_size", kernel_size) % 2 == 0:
            raise ConfigError(f"kernel_size must be odd, for the sizes of both branches to agree; got {kernel_size}")
        if any(side % stride for side in shape[1:]):
            raise ConfigError(f"the stride {stride} must divide the sides of images of {shape[1]}×{shape[2]}")
        same = stride == 1 and out == into
        shortcut = shortcut or ("identity" if same else "learned")
        _check_shortcut(shortcut, same, out >= into)
        within = conv_shape(shape, hidden, kernel_size, stride, kernel_size // 2)
        self.output_shape = (out, *within[1:])
        super().__init__(shape, [shape, within, shape], lipschitz)
        learned = nn.Conv2d(into, out, stride, stride, bias=False)
        self.shortcut = {"identity": nn.Identity(), "pool": Pool(stride, out), "learned": learned}[shortcut]
        self.inner = nn.Conv2d(into, hidden, kernel_size, stride, kernel_size // 2)
        self.outer = nn.Conv2d(hidden, out, kernel_size, 1, kernel_size // 2)
        self._finish(activation, hidden)
        with torch.no_grad():
            orthogonal_at_centre(self.inner)
            for p in self.outer.parameters():
                nn.init.zeros_(p)
            if isinstance(self.shortcut, nn.Conv2d):
                orthogonal_at_centre(self.shortcut)
            if same:
                middle = kernel_size // 2
                self.outer.weight[:, :, middle, middle] = -2 * self.inner.weight[:, :, middle, middle].T
