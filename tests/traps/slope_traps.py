"""Traps for bounds: a network, two points whose slope is the witness, and the foil that claims less than that slope."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import foils
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catalogue import Fn
from lipcert.models.normalize import Normalize

TRAPS: dict[str, Trap] = {}
SMALLEST = 2.0**-126  # float32's smallest normal number


@dataclass(frozen=True)
class Trap:
    """``ends()`` gives the two points; without it they lie along what an affine network stretches most."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    foil: Callable[[nn.Module], float]
    ends: Callable[[], tuple[Tensor, Tensor]] | None = None

    def module(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build().eval()

    def points(self) -> tuple[Tensor, Tensor]:
        """Two float64 points."""
        if self.ends is not None:
            a, b = self.ends()
            return a.double(), b.double()
        zero = torch.zeros(self.shape, dtype=torch.float64)
        net = self.module().double()
        basis = torch.eye(zero.numel(), dtype=torch.float64).reshape(-1, *self.shape)
        with torch.no_grad():
            matrix = (net(basis) - net(zero[None])).flatten(1)
        return zero, torch.linalg.svd(matrix.T).Vh[0].reshape(self.shape)


def trap(
    name: str,
    shape: tuple[int, ...],
    build: Callable[[], nn.Module],
    foil: Callable[[nn.Module], float] = foils.lipschitz,
    ends: Callable[[], tuple[Tensor, Tensor]] | None = None,
) -> None:
    """Put a trap into the catalogue."""
    assert name not in TRAPS
    TRAPS[name] = Trap(build, shape, foil, ends)


def linear(*weights: list[list[float]], dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """Linear layers without biases, one after another."""
    net = nn.Sequential(*(nn.Linear(len(w[0]), len(w), bias=False, dtype=dtype) for w in weights))
    for layer, w in zip(net, weights, strict=True):
        layer.weight.data = torch.tensor(w, dtype=dtype)
    return net


# --- scale ----------------------------------------------------------------------------------------------------------
def _scaled(k: int, *, narrow_first: bool) -> nn.Module:
    net = linear([[0.0, 1.0], [0.5, 0.0]], [[1.0, 0.0], [0.0, 0.5]])
    down, up = (0, 1) if narrow_first else (1, 0)
    net[down].weight.data *= 2.0**-k
    net[up].weight.data *= 2.0**k
    return net


for _k in (20, 40, 60, 80, 100, 120):
    trap(f"first divided by 2^{_k}, second multiplied", (2,), lambda k=_k: _scaled(k, narrow_first=True))
    trap(f"first multiplied by 2^{_k}, second divided", (2,), lambda k=_k: _scaled(k, narrow_first=False))
trap("weights of float32's smallest normal", (3,), lambda: linear([[SMALLEST, -SMALLEST, 0.0], [0.0, SMALLEST, 0.0]]))
trap("a subnormal weight", (1,), lambda: linear([[2.0**-149]]))
trap("a scalar weight of 1e-5", (1,), lambda: linear([[1e-5]]))

# --- norms ----------------------------------------------------------------------------------------------------------
trap("started orthogonal to the top vector", (2,), lambda: linear([[3.0, -3.0], [1.0, 1.0]]))
trap(
    "a spectrum without gaps",
    (8,),
    lambda: linear((torch.linalg.qr(torch.randn(8, 8)).Q @ torch.diag(1 - 0.05 * torch.arange(8.0))).tolist()),
)


def _conv(*args: int, **options: object) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        layer = nn.Conv2d(*args, bias=False, **options)  # type: ignore[arg-type]
        nn.init.uniform_(layer.weight, 0.5, 1.0)
        return layer

    return build


for _name, _build, _shape in (
    ("a convolution", _conv(1, 1, 3, padding=1), (1, 5, 5)),
    ("stride", _conv(2, 2, 3, stride=2, padding=1), (2, 7, 7)),
    ("dilation", _conv(1, 2, 2, dilation=2), (1, 6, 6)),
    ("groups", _conv(4, 4, 3, padding=1, groups=2), (4, 5, 5)),
    ("circular padding", _conv(1, 2, 3, padding=1, padding_mode="circular"), (1, 4, 4)),
    ("replicated padding", _conv(1, 1, 3, padding=2, padding_mode="replicate"), (1, 3, 3)),
):
    trap(f"{_name}: the kernel taken for a matrix", _shape, _build, foils.lipschitz_exact_layers)


def _transposed() -> nn.Module:
    layer = nn.ConvTranspose2d(1, 2, 3, stride=2, bias=False)
    nn.init.uniform_(layer.weight, 0.5, 1.0)
    return layer


trap("transposed convolution: the kernel taken for a matrix", (1, 4, 4), _transposed, foils.lipschitz_exact_layers)


# --- what a walk over the children does not see -------------------------------------------------------------------
def _bright(*shape: int) -> Tensor:
    image = torch.zeros(shape)
    image[0, shape[1] // 2, shape[2] // 2] = 1.0
    return image


def _pixel() -> tuple[Tensor, Tensor]:
    return torch.zeros(1, 5, 5), _bright(1, 5, 5)


trap("max pooling, overlapping by one", (1, 5, 5), lambda: nn.MaxPool2d(2, 1), ends=_pixel)
trap("max pooling, padded and overlapping", (1, 5, 5), lambda: nn.MaxPool2d(3, 2, 1), ends=lambda: (
    torch.zeros(1, 5, 5), F.pad(torch.ones(1, 1, 1), (1, 3, 1, 3))
))  # fmt: skip
trap("adaptive max pooling with uneven windows", (1, 5, 5), lambda: nn.AdaptiveMaxPool2d(4), ends=_pixel)
trap("average pooling with a divisor of its own", (1, 4, 4), lambda: nn.AvgPool2d(2, divisor_override=1))
trap("normalisation with std .5", (1, 3, 3), lambda: nn.Sequential(Normalize(0.5, 0.5), nn.Flatten()))


def _norm() -> nn.Module:
    layer = nn.BatchNorm1d(3)
    layer.running_var.fill_(0.01)
    return nn.Sequential(nn.Linear(3, 3), layer)


trap("BatchNorm with a small variance", (3,), _norm, foils.lipschitz_exact_layers)


class Scaled(nn.Linear):
    """A subclass that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * super().forward(x)


trap("a subclass with another forward", (2,), lambda: Scaled(2, 2), foils.lipschitz_exact_layers)
trap(
    "arithmetic in forward",
    (2,),
    lambda: Fn(lambda s, x: 5 * s.a(x), a=nn.Linear(2, 2)),
    foils.lipschitz_exact_layers,
)
trap(
    "a shared layer, used twice",
    (2,),
    lambda: Fn(lambda s, x: s.a(s.a(x)), a=linear([[2.0, 0.0], [0.0, 1.0]])),
    foils.lipschitz_exact_layers,
)
trap(
    "a residual connection",
    (2,),
    lambda: Fn(lambda s, x: x + s.a(x), a=linear([[2.0, 0.0], [0.0, 1.0]])),
    foils.lipschitz_exact_layers,
)


def _hooked() -> nn.Module:
    net = linear([[1.0, 0.0], [0.0, 1.0]])
    net[0].register_forward_hook(lambda module, args, out: 2 * out)
    return net


trap("a hook", (2,), _hooked, foils.lipschitz_exact_layers)
for _name, _act, _at in (
    ("GELU", nn.GELU(), 1.4),
    ("SiLU", nn.SiLU(), 2.4),
    ("a steep LeakyReLU", nn.LeakyReLU(2.5), -1.0),
    ("Hardswish", nn.Hardswish(), 2.9),
):
    trap(
        f"{_name} is steeper than 1",
        (1,),
        lambda a=_act: nn.Sequential(a),
        ends=lambda at=_at: (torch.tensor([at]), torch.tensor([at + 1e-3])),
    )
