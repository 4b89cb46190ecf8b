"""Small networks for the adversary: a kind and a seed give the layers, a draw gives their weights.

The weights are float32 numbers, and the float64 copy that the attacks run is the real-arithmetic network of them.
Several kinds are made so that their bound is (nearly) attained: there, a bound that is 1 % too small gets caught.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catalogue import Fn, classifier
from random_programs import SHAPE, Program

Draw = Callable[[nn.Module, random.Random], None]


@dataclass(frozen=True)
class Network:
    """One network with its weights. ``name`` is the Python expression that makes it again."""

    name: str
    kind: str
    shape: tuple[int, ...]
    module: nn.Module

    def double(self) -> nn.Module:
        """A float64 copy: the network of the stored weights, nearly without rounding."""
        return copy.deepcopy(self.module).double().eval()

    def inputs(self, rows: int, seed: int = 0) -> Tensor:
        """Float32 inputs of three sizes."""
        generator = torch.Generator().manual_seed(seed)
        sizes = torch.tensor([0.3, 1.0, 3.0])[torch.arange(rows) % 3].reshape(-1, *(1,) * len(self.shape))
        return torch.randn((rows, *self.shape), generator=generator) * sizes


class Abs(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z.abs()


class MaxMin(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        a, b = z.chunk(2, 1)
        return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], 1)


def _leaky() -> nn.Module:
    return nn.LeakyReLU(0.1)


SMOOTH = (nn.Tanh, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus)
HOMOGENEOUS = (nn.ReLU, nn.ReLU, _leaky, Abs)


# --- weights --------------------------------------------------------------------------------------------------------
def gaussian(module: nn.Module, r: random.Random) -> None:
    """Weights of a size at which signals neither fade nor grow by much."""
    for layer in module.modules():
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor):
            gain = r.choice([0.5, 1.0, 1.5, 3.0])
            nn.init.normal_(weight, std=gain / max(1, weight[0].numel()) ** 0.5 if weight.ndim > 1 else gain)
        if isinstance(getattr(layer, "bias", None), Tensor):
            nn.init.normal_(layer.bias, std=r.choice([0.0, 0.3, 1.0]))


def _rotation(n: int) -> Tensor:
    return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64)).Q


def _spectrum(n: int, r: random.Random) -> Tensor:
    """Singular values with little between them, at which power iteration is slow."""
    values = 1 - r.choice([0.003, 0.02, 0.1]) * torch.arange(n, dtype=torch.float64)
    return values.clamp_min(0.01) * r.choice([0.7, 1.0, 2.0])


def aligned(module: nn.Module, r: random.Random) -> None:
    """Each layer stretches most what the one before stretched most; all activations are on: the bound is attained."""
    before: Tensor | None = None
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            left = _rotation(layer.out_features)
            right = _rotation(layer.in_features) if before is None else before
            n = min(layer.weight.shape)
            layer.weight.copy_((left[:, :n] * _spectrum(n, r)) @ right[:, :n].T)
            layer.bias.fill_(60.0)
            before = left


def gapless(module: nn.Module, r: random.Random) -> None:
    """Spectra without gaps in rotations of their own."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            n = min(layer.weight.shape)
            left, right = _rotation(layer.out_features)[:, :n], _rotation(layer.in_features)[:, :n]
            layer.weight.copy_((left * _spectrum(n, r)) @ right.T)
            nn.init.normal_(layer.bias)


def always_on(module: nn.Module, r: random.Random) -> None:
    gaussian(module, r)
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.bias.fill_(80.0)


def biased(module: nn.Module, r: random.Random) -> None:
    """Biases at which float32 loses most digits of the signal, taken off again at the end."""
    gaussian(module, r)
    size = 2.0 ** r.randint(4, 20)
    linears = [m for m in module.modules() if isinstance(m, nn.Linear)]
    for layer in linears[:-1]:
        layer.bias.fill_(0.0).add_(size * torch.randn(layer.bias.shape))
    last = linears[-1]
    last.bias.zero_()
    shift = copy.deepcopy(module).double()(torch.zeros(1, linears[0].in_features, dtype=torch.float64))[0]
    last.bias.copy_(-shift)


def scaled(module: nn.Module, r: random.Random) -> None:
    """One layer divided by a power of two, up to 2^60, and a later one multiplied by it: the same function."""
    gaussian(module, r)
    linears = [m for m in module.modules() if isinstance(m, nn.Linear)]
    total = 0
    for i, layer in enumerate(linears):
        step = -total if i == len(linears) - 1 else r.randint(-60, 60) - total
        total += step
        layer.weight.mul_(2.0**step)
        layer.bias.mul_(2.0**total)


# --- layers ---------------------------------------------------------------------------------------------------------
def _mlp(r: random.Random, acts: Sequence[Callable[[], nn.Module]], *, least: int = 1, width: int = 12) -> nn.Module:
    sizes = [r.randint(1, width), *(r.randint(1, width) for _ in range(r.randint(least, 4) - 1)), r.randint(2, 4)]
    modules: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        modules += [nn.Linear(a, b), r.choice(acts)()]
    return nn.Sequential(*modules[:-1])


def _square(r: random.Random, act: Callable[[], nn.Module]) -> nn.Module:
    n, depth = r.randint(3, 12), r.randint(1, 3)
    modules = [m for _ in range(depth) for m in (nn.Linear(n, n), act())]
    return nn.Sequential(*modules, nn.Linear(n, r.randint(2, 4)))


def _conv(r: random.Random) -> nn.Module:
    mode = r.choice(["zeros", "zeros", "circular", "reflect"])
    kernel, groups = r.choice([1, 2, 3]), r.choice([1, 2])
    first = nn.Conv2d(2, 4, kernel, r.choice([1, 2]), r.choice([0, 1]), 1, groups, padding_mode=mode)
    second = nn.Conv2d(4, 2, 2, 1, 1, r.choice([1, 2]))
    return classifier((2, 4, 4), first, r.choice(HOMOGENEOUS)(), second, r.choice((*HOMOGENEOUS, *SMOOTH))())


def _pool(r: random.Random) -> nn.Module:
    pool = nn.MaxPool2d(r.choice([2, 3]), r.choice([1, 2]), r.choice([0, 1]))
    return classifier((1, 4, 4), nn.Conv2d(1, 2, r.choice([1, 2]), padding=1), r.choice(HOMOGENEOUS)(), pool)


def _pool_only(r: random.Random) -> nn.Module:
    return classifier((1, 3, 3), nn.MaxPool2d(2, 1, r.choice([0, 1])))


def _residual(r: random.Random) -> nn.Module:
    n = r.randint(2, 8)
    act = r.choice((*HOMOGENEOUS, *SMOOTH))()
    return Fn(lambda s, x: s.d(x + s.b(s.g(s.a(x)))), a=nn.Linear(n, 6), b=nn.Linear(6, n), d=nn.Linear(n, 3), g=act)


def _branches(r: random.Random) -> nn.Module:
    n = r.randint(2, 6)
    parts = {"a": nn.Linear(n, 6), "b": nn.Linear(n, 6), "d": nn.Linear(6, 3), "e": nn.Linear(n, 3)}
    return Fn(lambda s, x: s.d(F.relu(s.a(x)) - torch.tanh(s.b(x))) + s.e(x), **parts)


def _shared(r: random.Random) -> nn.Module:
    n, act = r.randint(2, 10), r.choice(HOMOGENEOUS)()
    return Fn(lambda s, x: s.d(s.g(s.a(s.g(s.a(x))))), a=nn.Linear(n, n), d=nn.Linear(n, 3), g=act)


def _sorting(r: random.Random) -> nn.Module:
    n = r.randint(2, 8)
    return nn.Sequential(nn.Linear(n, 6), MaxMin(), nn.Linear(6, 6), MaxMin(), nn.Linear(6, 3))


def _tiny(r: random.Random) -> nn.Module:
    """Few enough neurons that all linear regions can be counted."""
    inputs, act = r.randint(1, 3), r.choice([nn.ReLU, nn.ReLU, _leaky])
    most = 4 if inputs == 3 else 6
    widths = [inputs, *(r.randint(1, most) for _ in range(r.randint(1, 2))), r.randint(2, 3)]
    modules = [m for a, b in itertools.pairwise(widths) for m in (nn.Linear(a, b), act())]
    return nn.Sequential(*modules[:-1])


KINDS: dict[str, tuple[Callable[[random.Random], nn.Module], Draw]] = {
    "mlp": (lambda r: _mlp(r, (*HOMOGENEOUS, *SMOOTH)), gaussian),
    "conv": (_conv, gaussian),
    "residual": (_residual, gaussian),
    "branches": (_branches, gaussian),
    "max-pool": (_pool, gaussian),
    "pool-only": (_pool_only, gaussian),
    "shared": (_shared, gaussian),
    "sorting": (_sorting, gaussian),
    "biased": (lambda r: _mlp(r, HOMOGENEOUS, least=2), biased),
    "scaled": (lambda r: _mlp(r, HOMOGENEOUS, least=2), scaled),
    "nearly-linear": (lambda r: _square(r, lambda: nn.LeakyReLU(0.99)), gapless),
    "always-on": (lambda r: _square(r, nn.ReLU), always_on),
    "aligned": (lambda r: _square(r, nn.ReLU), aligned),
    "gapless": (lambda r: _square(r, nn.Tanh), gapless),
    "tiny": (_tiny, lambda module, r: r.choice([gaussian, gapless])(module, r)),
}


def layers(kind: str, seed: int) -> nn.Module:
    """The layers, with weights that nobody has chosen yet."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return KINDS[kind][0](random.Random(f"{kind} {seed}")).eval()


def input_shape(kind: str, module: nn.Module) -> tuple[int, ...]:
    """By the first layer; images have a shape of their kind."""
    images = {"conv": (2, 4, 4), "max-pool": (1, 4, 4), "pool-only": (1, 3, 3)}
    first = next(m for m in module.modules() if hasattr(m, "weight"))
    return images.get(kind) or (first.in_features,)


def redraw(module: nn.Module, kind: str, seed: int, draw: int) -> Network:
    """New weights in the same module, so that one trace of it serves many draws."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1_000_003 * seed + draw)
        KINDS[kind][1](module, random.Random(f"{kind} {seed} {draw}"))
    return Network(f"network({kind!r}, {seed}, {draw})", kind, input_shape(kind, module), module)


def program(seed: int) -> Network:
    """A random graph of :mod:`random_programs`, with float32 weights."""
    return Network(f"program({seed})", "program", SHAPE, Program(seed).float())


def network(kind: str, seed: int, draw: int = 0) -> Network:
    """A network of a kind: the same for the same seed and draw."""
    return redraw(layers(kind, seed), kind, seed, draw)


def trained(kind: str, seed: int, steps: int = 60) -> Network:
    """The same after a little training on three blobs, which makes its margins and its Lipschitz constant grow."""
    net = network(kind, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classes = int(net.module(torch.zeros(1, *net.shape)).shape[1])
        y = torch.arange(96) % classes
        x = 1.5 * torch.randn(classes, *net.shape)[y] + 0.4 * torch.randn(96, *net.shape)
        optimiser = torch.optim.Adam(net.module.parameters(), 0.02)
        for _ in range(steps):
            optimiser.zero_grad()
            F.cross_entropy(net.module(x), y).backward()
            optimiser.step()
    net.module.zero_grad(set_to_none=True)
    return Network(f"trained({kind!r}, {seed}, {steps})", kind, net.shape, net.module.eval())
