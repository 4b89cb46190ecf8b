"""A bound that does its work when autograd hands it the cotangent of its value: what all training bounds share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lipcert.bounds.options import check_scope
from lipcert.bounds.result import Scope
from lipcert.errors import BoundError
from lipcert.graph import trace
from lipcert.graph.types import Resolved
from lipcert.parallel import ALONE, Ranks

__all__ = ["SETTLE", "DeferredBound", "detached", "in_layout", "memory_layout"]


SETTLE = 40
"""Passes of a bound that has not been used for a while, or is looked at closely."""


def detached(resolved: Resolved) -> Resolved:
    """The same numbers, without their history."""
    return resolved.with_tensors([t.detach() for t in resolved.tensors()])


class DeferredBound(nn.Module):
    """A differentiable bound of a network that is trained; its value is that of the step before.

    Subclasses register the buffer ``value`` and say in :meth:`_step` what a backward pass does.

    Args:
        module: the network that is trained.
        input_shape: shape of one input, without the batch dimension.
        scope: ``"global"``, ``"class"`` or ``"pairwise"``.
        every: let :meth:`_step` work in every n-th backward pass only; in between its gradients are used again, scaled
            to the size of the present cotangent.
        counts: options that must be at least 1, by name.

    Raises:
        BoundError: an option out of range.
        ShapeError: logits asked for of an output that is not a vector of them.
    """

    value: Tensor
    counter: Tensor
    divides = False
    """Whether processes that share it make a part of the pass each, instead of all of it."""

    def __init__(
        self, module: nn.Module, input_shape: Sequence[int], scope: Scope, every: int, counts: Mapping[str, int]
    ) -> None:
        super().__init__()
        wrong = {k: n for k, n in {"every": every, **counts}.items() if not isinstance(n, int) or n < 1}
        if wrong:
            said = ", ".join(map(str, wrong.values()))
            raise BoundError(f"{', '.join(wrong)} must be at least 1, a whole number; got {said}.")
        self.graph = trace(module, input_shape, allow_train_mode=True)
        check_scope(scope, self.graph)
        self.scope, self.every, self.ranks = scope, every, ALONE

    def share(self, ranks: Ranks) -> None:
        """Be the bound of a network that several processes train from now on, each on its part of the batches.

        Their losses are added, and so are the gradients that each gets; their states are to be the same.
        """
        self.ranks = ranks

    def gather(self) -> None:
        """Bring together what the processes know, to be saved: the first then has all of it."""
        self.ranks.add(*self._stale())
        self.keep_once()

    def keep_once(self) -> None:
        """What the processes add up, the first alone keeps: after :meth:`gather`, or a state that was loaded."""
        if not self.ranks.first:
            for gradient in self._stale():
                gradient.zero_()

    def _stale(self) -> list[Tensor]:
        """The gradients that are used again, of which each process has its share."""
        return [b for name, b in self.named_buffers() if name.startswith("stale_") and name != "stale_size"]

    def _register_counter(self, resolved: Resolved) -> None:
        self.register_buffer("counter", torch.zeros((), dtype=torch.int64))
        if self.every > 1:
            for i, tensor in enumerate(resolved.tensors()):
                self.register_buffer(f"stale_{i}", torch.zeros_like(tensor))
            self.register_buffer("stale_size", resolved.scalar(0.0))

    def _step(self, resolved: Resolved, tensors: Sequence[Tensor], cotangent: Tensor) -> list[Tensor | None]:
        """Update the state; returns the gradients in ``tensors``, those of ``resolved`` (zeros if the cotangent is)."""
        raise NotImplementedError

    def refresh(self, iterations: int = 1) -> Tensor:
        """Bring the state up to the present weights; the value, no gradient."""
        raise NotImplementedError

    def settle(self) -> Tensor:
        """Bring the state close to convergence at the present weights; the value, no gradient."""
        return self.refresh(SETTLE)

    def deferred(self, resolved: Resolved, tensors: Sequence[Tensor], cotangent: Tensor) -> list[Tensor | None]:
        """What happens in the backward pass: from G = ∂loss/∂value to the gradients of the weights' coefficients."""
        if self.ranks.size > 1:
            cotangent = cotangent.contiguous().clone()
            self.ranks.add(cotangent)
        turn = int(self.counter) % self.every if self.every > 1 else 0  # to look at it waits for a GPU
        self.counter += 1  # not where a CUDA graph is replayed, which is of every = 1
        size = cotangent.abs().sum()
        if turn:
            scale = size / self.get_buffer("stale_size").clamp_min(torch.finfo(size.dtype).tiny)
            scale = torch.where(self.get_buffer("stale_size") > 0, scale, torch.zeros_like(scale))
            return [self.get_buffer(f"stale_{i}") * scale for i in range(len(tensors))]
        gradients = self._step(resolved, tensors, cotangent)
        if not (self.divides or self.ranks.first):  # each has the whole, and one is enough
            gradients = [torch.zeros_like(t) for t in tensors]
        if self.every > 1:
            self.get_buffer("stale_size").copy_(size)
            for i, g in enumerate(gradients):
                stale = self.get_buffer(f"stale_{i}")
                stale.zero_() if g is None else stale.copy_(g)
        return gradients

    def forward(self) -> Tensor:
        """The bound, of shape (), (C,) or (C, C); differentiable in the weights, one step old."""
        if not torch.is_grad_enabled():
            return self.value.clone()
        with torch.autocast(self.value.device.type, enabled=False):
            resolved = self.graph.resolve(self.value.dtype, self.value.device)
        result: Tensor = _Deferred.apply(self, resolved, *resolved.tensors())  # type: ignore[no-untyped-call]
        return result


class _Deferred(torch.autograd.Function):
    """Hands out the present value, and calls back with its cotangent."""

    @staticmethod
    def forward(ctx: Any, owner: DeferredBound, resolved: Resolved, *tensors: Tensor) -> Tensor:
        ctx.owner, ctx.resolved = owner, resolved
        ctx.save_for_backward(*tensors)
        return owner.value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        with torch.autocast(cotangent.device.type, enabled=False):
            gradients = ctx.owner.deferred(ctx.resolved, ctx.saved_tensors, cotangent)
        return (None, None, *gradients)


def memory_layout(module: nn.Module) -> torch.memory_format:
    """The memory layout that the module's convolutions are in; its bound then runs without conversions."""
    weights = [p for p in module.parameters() if p.ndim == 4 and not p.is_contiguous()]
    last = weights and all(p.is_contiguous(memory_format=torch.channels_last) for p in weights)
    return torch.channels_last if last else torch.contiguous_format


def in_layout(value: Tensor, layout: torch.memory_format) -> Tensor:
    """A tensor in that layout, if it has as many dimensions as it takes."""
    return value.contiguous(memory_format=layout) if value.ndim == 4 else value
