"""Residual blocks that are κ-Lipschitz by small gain, in closed form: SDP-based Lipschitz layers."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lipcert.errors import ConfigError, ModuleStateError, ShapeError
from lipcert.graph.capture import is_read
from lipcert.layers.activations import ACTIVATIONS, make_activation, slopes_by_name, slopes_of
from lipcert.layers.linear import orthogonal_at_centre
from lipcert.layers.normalised import plain_precision, positive
from lipcert.layers.parts import Block, image_shape, whole

__all__ = ["SmallGainConv2d", "SmallGainLinear"]

_FARTHEST = 6.0  # of log q from the largest: quotients that do not blow up what rounding leaves of W·Wᵀ where that is 0


class _SmallGain(nn.Module):
    """y = κ·(x − (2/β)·Wᵀ T⁻¹ φ(W x + b)), with T ⪰ W Wᵀ diagonal."""

    weight: Tensor

    def __init__(self, shape: Sequence[int], hidden: int, activation: str, lipschitz: float) -> None:
        super().__init__()
        self.input_shape, self.lipschitz = tuple(shape), positive(lipschitz)
        self.act = make_activation(activation, hidden)
        centre, radius = slopes_by_name(activation)
        if centre < radius * (1 - 1e-6) or centre == 0:
            raise ConfigError(
                f"activation {activation!r} is not monotone and elementwise, so that this block has no bound in closed "
                "form: use ResidualLinear or ResidualConv2d, or an activation such as 'relu'"
            )
        self.steepest = centre + radius
        self.log_q = nn.Parameter(torch.zeros(hidden))
        self.bias = nn.Parameter(torch.zeros(hidden))

    def check_activation(self) -> None:
        """That φ is still one for which the block is κ-Lipschitz.

        Raises:
            ModuleStateError: another one was put in its place.
        """
        known = type(self.act) in ACTIVATIONS.values()
        centre, radius = slopes_of(copy.deepcopy(self.act), len(self.bias)) if known else (0.0, 1.0)
        if not (centre - radius >= 0 and centre + radius <= self.steepest):
            raise ModuleStateError(
                f"{type(self).__name__}: its activation was replaced by one for which nothing is proved; make a new "
                "layer with activation=…"
            )

    def gram(self) -> Tensor:
        """A with diag(A·q/q) ⪰ W Wᵀ for every q > 0, by channels: (hidden, hidden).

        ``|W Wᵀ|`` of a dense W. Of a convolution the sum over positions of the sizes of its correlation, which is that
        of an infinite image: W is a compression of it, so that W Wᵀ is bounded, though not every entry at the border.
        """
        raise NotImplementedError

    def scales(self) -> Tensor:
        """Every q over the largest: (hidden,), from e⁻⁶ to 1."""
        return (self.log_q - self.log_q.amax()).clamp_min(-_FARTHEST).exp()  # quotients count, and any will do

    def divisors(self) -> Tensor:
        """T_i = Σ_j |W Wᵀ|_ij·q_j/q_i: (hidden,)."""
        with plain_precision(self.bias):
            q = self.scales()
            return (self.gram() @ q / q).clamp_min(1e-30)

    def factors(self) -> Tensor:
        """κ·(2/β)·T⁻¹: (hidden,)."""
        return 2 * self.lipschitz / (self.steepest * self.divisors())

    def inner_part(self, x: Tensor) -> Tensor:
        """W x + b."""
        raise NotImplementedError

    def outer_weight(self) -> Tensor:
        """κ·(2/β)·T⁻¹W, as its adjoint is stored."""
        raise NotImplementedError

    def outer_part(self, a: Tensor) -> Tensor:
        """κ·(2/β)·Wᵀ T⁻¹ a."""
        raise NotImplementedError

    def ordinary(self) -> tuple[nn.Linear | nn.Conv2d, nn.Linear | nn.ConvTranspose2d]:
        """Layers of the shapes of W and its adjoint, the first with a bias."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        if tuple(x.shape[1:]) != self.input_shape:
            raise ShapeError(
                f"{type(self).__name__} takes inputs of shape {self.input_shape}; got {tuple(x.shape[1:])}"
            )
        x_scaled = x if self.lipschitz == 1 else x * self.lipschitz
        return x_scaled - self.outer_part(self.act(self.inner_part(x)))

    @torch.no_grad()
    def folded(self) -> nn.Module:
        """The block as ordinary layers; what it subtracts is a hair smaller, which keeps the bound."""
        self.check_activation()
        inner, outer = self.ordinary()
        inner.weight.copy_(self.weight.detach())
        assert inner.bias is not None
        inner.bias.copy_(self.bias)
        outer.weight.copy_(-self.outer_weight() * (1 - 2.0**-14))
        scale = None if self.lipschitz == 1 else self.lipschitz
        return Block(nn.Identity(), inner, self.act, outer, scale).requires_grad_(False).eval()

    def extra_repr(self) -> str:
        """What is shown of it."""
        return f"{self.input_shape}, lipschitz={self.lipschitz:g}"


class SmallGainLinear(_SmallGain):
    """``y = κ·(x − (2/β)·Wᵀ T⁻¹ φ(W x + b))``, ``T_i = Σ_j |W Wᵀ|_ij·q_j/q_i``, φ with slopes in [0, β].

    It is κ-Lipschitz whatever W, b and q > 0 are, by small gain with D = T^{-1/2}: for A = T^{-1/2}·W, ‖A‖ ≤ 1 as
    T ⪰ WWᵀ, and for differences z of A·x and p of T^{-1/2}·φ, ‖x − (2/β)·Aᵀp‖² ≤ ‖x‖² − (4/β)·z·p + (4/β²)·‖p‖² ≤ ‖x‖²,
    because ‖p‖² ≤ β·z·p. For ReLU and κ = 1 it is the SDP-based Lipschitz layer. q is exp(``log_q``), and e⁻⁶ of its
    largest entry at least.

    Args:
        features: of input and result.
        hidden: rows of W; as many as ``features`` by default.
        activation: φ, monotone and elementwise.
        lipschitz: κ.

    Shapes: (N, features) → (N, features).

    Raises:
        ConfigError: an activation that is not monotone, or κ is not a positive number.
        ShapeError: an input of another shape.

    Source: Araujo, Havens, Delattre, Allauzen, Hu, "A Unified Algebraic Perspective on Lipschitz Neural Networks",
    ICLR 2023.

    >>> SmallGainLinear(6, 12)(torch.ones(2, 6)).shape
    torch.Size([2, 6])
    """

    def __init__(
        self, features: int, hidden: int | None = None, *, activation: str = "relu", lipschitz: float = 1.0
    ) -> None:
        hidden = whole("hidden", hidden, whole("features", features))
        super().__init__((features,), hidden, activation, lipschitz)
        self.weight = nn.Parameter(nn.init.orthogonal_(torch.empty(hidden, features)))

    def gram(self) -> Tensor:
        """|W Wᵀ|."""
        return (self.weight @ self.weight.T).abs()

    def inner_part(self, x: Tensor) -> Tensor:
        """W x + b."""
        return nn.functional.linear(x, self.weight, self.bias)

    def outer_part(self, a: Tensor) -> Tensor:
        """κ·(2/β)·Wᵀ T⁻¹ a."""
        return nn.functional.linear(a, self.outer_weight())

    def outer_weight(self) -> Tensor:
        """κ·(2/β)·(T⁻¹W)ᵀ."""
        return (self.weight * self.factors()[:, None]).T

    def ordinary(self) -> tuple[nn.Linear, nn.Linear]:
        """Two linear layers."""
        hidden, features = self.weight.shape
        return nn.Linear(features, hidden), nn.Linear(hidden, features, bias=False)


class SmallGainConv2d(_SmallGain):
    """:class:`SmallGainLinear` of images: W is a convolution with zeros around the image, Wᵀ its adjoint.

    T_i sums ``|W ∗ Wᵀ|`` over all shifts and channels, so the bound holds for images of any size, at their borders too.

    Args:
        input_shape: (C, H, W) of one image.
        hidden: channels of W x; C by default.
        kernel_size: of W, odd.
        activation: φ, monotone and elementwise.
        lipschitz: κ.

    Shapes: (N, C, H, W) → (N, C, H, W).

    Raises:
        ConfigError: an even kernel, an activation that is not monotone, or κ is not a positive number.
        ShapeError: an input of another shape.

    Source: as of :class:`SmallGainLinear`.

    >>> SmallGainConv2d((4, 8, 8), 8)(torch.rand(2, 4, 8, 8)).shape
    torch.Size([2, 4, 8, 8])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        hidden: int | None = None,
        *,
        kernel_size: int = 3,
        activation: str = "relu",
        lipschitz: float = 1.0,
    ) -> None:
        shape = image_shape(input_shape)
        hidden = whole("hidden", hidden, shape[0])
        if whole("kernel_size", kernel_size) % 2 == 0:
            raise ConfigError(f"kernel_size must be odd, for the size of the image to stay; got {kernel_size}")
        super().__init__(shape, hidden, activation, lipschitz)
        conv = nn.Conv2d(shape[0], hidden, kernel_size, padding=kernel_size // 2)
        orthogonal_at_centre(conv)
        self.weight, self.padding = nn.Parameter(conv.weight.detach()), kernel_size // 2

    def gram(self) -> Tensor:
        """Σ over shifts of |W ∗ Wᵀ|.

        At one shift W ∗ Wᵀ is a product of two matrices of the taps that lie on each other then; at the opposite shift
        it is the transpose, so that half of them are enough.
        """
        # What is recorded is the same on every device: its hash stands in certificates.
        return self._gram_by_shifts() if self.weight.is_cpu or is_read() else self._gram_at_once()

    def _gram_at_once(self) -> Tensor:
        """All shifts in one product, of twice the work in a few operations: what a GPU prefers."""
        hidden, _, size, _ = self.weight.shape
        moved = nn.functional.unfold(self.weight, size, padding=size - 1)  # (hidden, C·k·k, shifts)
        products = moved.transpose(1, 2).flatten(0, 1) @ self.weight.flatten(1).T
        total: Tensor = products.abs().reshape(hidden, -1, hidden).sum(1)
        return total

    def _gram_by_shifts(self) -> Tensor:
        """Shift by shift: the least work."""
        taps, size = self.weight.permute(0, 2, 3, 1), self.weight.shape[-1]
        hidden, total = len(taps), (taps.flatten(1) @ taps.flatten(1).T).abs()
        for down in range(size):
            for across in range(1 - size if down else 1, size):
                left = taps[:, down:, max(across, 0) : size + min(across, 0)].reshape(hidden, -1)
                right = taps[:, : size - down, max(-across, 0) : size + min(-across, 0)].reshape(hidden, -1)
                one = (left @ right.T).abs()
                total = total + one + one.T
        return total

    def inner_part(self, x: Tensor) -> Tensor:
        """W ∗ x + b."""
        return nn.functional.conv2d(x, self.weight, self.bias, padding=self.padding)

    def outer_part(self, a: Tensor) -> Tensor:
        """κ·(2/β)·Wᵀ T⁻¹ a."""
        return nn.functional.conv_transpose2d(a, self.outer_weight(), padding=self.padding)

    def outer_weight(self) -> Tensor:
        """κ·(2/β)·T⁻¹W, whose adjoint a transposed convolution applies."""
        return self.weight * self.factors()[:, None, None, None]

    def ordinary(self) -> tuple[nn.Conv2d, nn.ConvTranspose2d]:
        """A convolution, and a transposed one."""
        hidden, channels, kernel, _ = self.weight.shape
        inner = nn.Conv2d(channels, hidden, kernel, padding=self.padding)
        return inner, nn.ConvTranspose2d(hidden, channels, kernel, padding=self.padding, bias=False)
