"""A stack of fifty blocks with a bound of their own: what it does to signals and gradients, and what its bounds say.

    python -m benchmarks stack

For each kind of block: κ^50, by how much the bound proved by the construction of the layers is above it (rounding), the
bounds proved by LipLT and by small gain (a weight a channel), the largest Jacobian norm at some points, and the norm of
the gradient at the output, in the middle and at the input, at initialisation and with random weights of unit variance
(κ = 0.98).
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

import lipcert
from lipcert.bounds import UpperBound, graph_bound
from lipcert.layers import ResidualConv2d, ResidualLinear, SmallGainConv2d, SmallGainLinear, by_construction

_DEPTH, _POINTS = 50, 8
_BLOCKS: dict[str, tuple[Callable[[float], nn.Module], tuple[int, ...]]] = {
    "residual, dense": (lambda k: ResidualLinear(16, lipschitz=k), (16,)),
    "small gain, dense": (lambda k: SmallGainLinear(16, lipschitz=k), (16,)),
    "residual, conv": (lambda k: ResidualConv2d((4, 4, 4), lipschitz=k), (4, 4, 4)),
    "small gain, conv": (lambda k: SmallGainConv2d((4, 4, 4), lipschitz=k), (4, 4, 4)),
}


def _gradients(stack: nn.Sequential, shape: tuple[int, ...]) -> tuple[float, list[float]]:
    """The largest Jacobian norm, and gradient norms behind the last block, in the middle, and at the input."""
    x = torch.randn((_POINTS, *shape), generator=torch.Generator().manual_seed(1)).requires_grad_()
    values = [x]
    for block in stack:
        values.append(block(values[-1]))
        values[-1].retain_grad()
    given = torch.randn(values[-1].shape, generator=torch.Generator().manual_seed(2))
    (values[-1] * given / given.norm()).sum().backward()
    jacobians = torch.func.vmap(torch.func.jacrev(lambda v: stack(v[None])[0].flatten()))(x.detach())
    largest = float(torch.linalg.matrix_norm(jacobians.detach().flatten(2), 2).max())
    return largest, [float(values[i].grad.norm()) for i in (_DEPTH, _DEPTH // 2, 0)]  # type: ignore[union-attr]


def main() -> None:
    """Print a line for each stack."""
    print(f"{'blocks':>18} {'weights':>8} {'κ':>5} {'κ^50':>7} {'above it':>8} {'LipLT ≤':>8} {'small gain ≤':>12} "
          f"{'Jacobian':>8} {'gradients':>20} {'seconds':>8}")  # fmt: skip
    for name, (make, shape) in _BLOCKS.items():
        for weights, kappa in (("start", 1.0), ("random", 0.98)):
            torch.manual_seed(0)
            stack = nn.Sequential(*(make(kappa) for _ in range(_DEPTH)))
            if weights == "random":
                with torch.no_grad():
                    for p in stack.parameters():
                        p.normal_()
            began = time.perf_counter()
            stack.eval()
            own = by_construction(stack, shape)
            graph = lipcert.trace(stack, shape)
            liplt = graph_bound(graph, guarantee="upper")
            assert isinstance(liplt, UpperBound)
            sharp = graph_bound(
                graph, method="smallgain", guarantee="upper", scaling="channel", seconds=60, liplt=liplt
            )
            seconds = time.perf_counter() - began
            jacobian, gradients = _gradients(stack, shape)
            shown = ", ".join(f"{g:.3g}" for g in gradients)
            above = float(own) / kappa**_DEPTH - 1
            numbers = f"{kappa**_DEPTH:>7.4f} {above:>8.0e} {float(liplt):>8.4g} {float(sharp):>12.4g} {jacobian:>8.4f}"
            print(f"{name:>18} {weights:>8} {kappa:>5} {numbers} {shown:>20} {seconds:>8.1f}", flush=True)


if __name__ == "__main__":
    main()
