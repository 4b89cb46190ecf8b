"""κ-Lipschitz linear and convolutional layers, and a last layer whose logit differences are κ-Lipschitz."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lipcert.errors import ConfigError
from lipcert.layers.normalised import SLACK_FOLDED, LinearMap, Normalised, plain_precision, positive
from lipcert.layers.parts import conv_shape, image_shape, scaled_copy, whole, without_bias

__all__ = ["LipschitzConv2d", "LipschitzLinear", "PairwiseLinear"]


class _OneLayer(Normalised):
    """``y = (κ/‖W‖)·(W x + b)``, W being an ordinary layer's."""

    inner: nn.Linear | nn.Conv2d

    def plain(self) -> nn.Module:
        """``W x + b``."""
        return self.inner

    def maps(self) -> list[LinearMap]:
        """W."""
        return [without_bias(self.inner)]

    def apply_plain(self, x: Tensor) -> Tensor:
        """``W x + b``."""
        result: Tensor = self.inner(x)
        return result

    def folded(self, *, prove: bool = True) -> nn.Linear | nn.Conv2d:
        """An ordinary layer of norm κ at most."""
        if prove:
            self.seal(SLACK_FOLDED)
        return scaled_copy(self.inner, self.factor())


class LipschitzLinear(_OneLayer):
    """``y = (κ/‖W‖)·(W x + b)``.

    Args:
        in_features, out_features: as of ``nn.Linear``.
        bias: whether there is a b.
        lipschitz: κ.

    Shapes: (N, in_features) → (N, out_features).

    Raises:
        ConfigError: κ is not a positive number.
        ShapeError: an input of another shape.

    Source: Miyato et al. 2018 (arXiv 1802.05957), for the warm power iteration.

    >>> import lipcert
    >>> layer = LipschitzLinear(5, 3, lipschitz=2.0).eval()
    >>> 1.98 < float(lipcert.lipschitz(layer, (5,))) <= 2.0
    True
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool = True, lipschitz: float = 1.0) -> None:
        super().__init__((in_features,), [(in_features,)], lipschitz)
        self.inner = nn.Linear(in_features, out_features, bias=bias)
        nn.init.orthogonal_(self.inner.weight)


class LipschitzConv2d(_OneLayer):
    """``y = (κ/‖W‖)·(W ∗ x + b)``, ‖W‖ being the norm of the convolution on images of the given size.

    Args:
        input_shape: (C, H, W) of one image.
        channels: of the result.
        kernel_size, stride, padding: as of ``nn.Conv2d``, with zeros around the image; by default the padding keeps the
            size of the image for odd kernels and stride 1.
        bias: whether there is a b.
        lipschitz: κ.

    Shapes: (N, C, H, W) → (N, channels, H', W').

    Raises:
        ConfigError: sizes that do not fit, or κ is not a positive number.
        ShapeError: an input of another shape.

    >>> LipschitzConv2d((3, 8, 8), 4, 3)(torch.rand(2, 3, 8, 8)).shape
    torch.Size([2, 4, 8, 8])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int | None = None,
        bias: bool = True,
        lipschitz: float = 1.0,
    ) -> None:
        shape = image_shape(input_shape)
        kernel_size = whole("kernel_size", kernel_size)
        padding = kernel_size // 2 if padding is None else padding
        self.output_shape = conv_shape(shape, channels, kernel_size, stride, padding)
        super().__init__(shape, [shape], lipschitz)
        self.inner = nn.Conv2d(shape[0], channels, kernel_size, stride, padding, bias=bias)
        orthogonal_at_centre(self.inner)


@torch.no_grad()
def orthogonal_at_centre(conv: nn.Conv2d) -> None:
    """Start from an isometry as far as there can be one: orthogonal taps where strides do not overlap, else one tap."""
    weight = conv.weight
    out, into, height, width = weight.shape
    stride = conv.stride[0]
    side = stride if stride <= min(height, width) else 1  # the taps of one stride do not overlap with another's
    matrix = torch.empty(out, into * side * side)
    nn.init.orthogonal_(matrix)
    weight.zero_()
    top, left = (height - side) // 2, (width - side) // 2
    weight[:, :, top : top + side, left : left + side] = matrix.reshape(out, into, side, side)


class PairwiseLinear(nn.Module):
    """A last layer ``y = κ·(W x)/max_ab ‖w_a − w_b‖ + b``: every difference of two logits is κ-Lipschitz.

    The certified radius of a network whose earlier layers are 1-Lipschitz is then its margin over κ. All is in closed
    form, so the bound needs no iteration and holds in train mode too.

    Args:
        in_features: of x.
        classes: C ≥ 2.
        bias: whether there is a b.
        lipschitz: κ.

    Shapes: (N, in_features) → (N, C).

    Raises:
        ConfigError: fewer than two classes, or κ is not a positive number.

    >>> import lipcert
    >>> layer = PairwiseLinear(5, 3).eval()
    >>> pairs = lipcert.lipschitz(layer, (5,), scope="pairwise", guarantee="upper").value
    >>> 0.999 < float(pairs.max()) < 1.003
    True
    """

    def __init__(self, in_features: int, classes: int, *, bias: bool = True, lipschitz: float = 1.0) -> None:
        super().__init__()
        if classes < 2:
            raise ConfigError(f"classes must be at least 2; got {classes}")
        self.lipschitz = positive(lipschitz)
        self.inner = nn.Linear(in_features, classes, bias=bias)

    def weight(self) -> Tensor:
        """W divided by its largest distance of two rows, times κ."""
        with plain_precision(self.inner.weight):
            w = self.inner.weight - self.inner.weight.mean(0)
            w = w / w.detach().abs().amax().clamp_min(torch.finfo(w.dtype).tiny)  # no product overflows
            gram = w @ w.T  # the largest distance is no small difference of large numbers
            squares = gram.diagonal()[:, None] + gram.diagonal()[None] - 2 * gram
            return w * (self.lipschitz / squares.max().clamp_min(1e-30).sqrt())

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer."""
        return nn.functional.linear(x, self.weight(), self.inner.bias)

    @torch.no_grad()
    def folded(self) -> nn.Linear:
        """An ``nn.Linear`` of the same function, a hair smaller."""
        copied = scaled_copy(self.inner, torch.ones(()))
        copied.weight.copy_(self.weight() * (1 - 2.0**-20))
        return copied
