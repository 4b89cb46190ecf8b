"""Moving entries about: reshaping, slicing, joining, padding, resampling. All linear, none with weights."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, fx

from lipcert.graph.builder import Builder, Call, Value, rule
from lipcert.graph.forms import CircularPadding, Section

MOVED = (1, 1)
"""Terms of a map that moves entries: each is copied from one, and goes to one at most."""


def _rank(b: Builder, index: int) -> int:
    return len(b.nodes[index].shape) + 1


def _not_batch(b: Builder, call: Call, index: int, *dims: int) -> None:
    if any(d % _rank(b, index) == 0 for d in dims):
        raise call.refuse("it works along the batch dimension.", "Keep the batch first and untouched.")


@rule("contiguous", "clone", "alias", "detach", "positive", "lift_fresh_copy", "dropout", "feature_dropout",
      "alpha_dropout", "feature_alpha_dropout", "to", "_to_copy", "type_as")  # fmt: skip
def nothing(b: Builder, call: Call) -> Value:
    """Steps that hand their input on unchanged: copies, dropout in eval, conversions to the same dtype."""
    name = "input" if "input" in call.arguments else "self"
    if call.get("train"):
        raise call.refuse("it is random.", "Call module.eval(), or use torch.nn.Dropout, which eval turns off.")
    carried, source = b.carried(call, name), call[name]
    if source.meta["val"].dtype != call.node.meta["val"].dtype:
        raise call.refuse("it rounds the signal to another dtype.", "Run the whole module in one dtype.")
    return carried


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "view_as", "reshape_as")
def reshape(b: Builder, call: Call) -> Value:
    """Any change of shape that keeps the order of a sample's entries and the batch in front."""
    source, shape = b.carried(call, "self"), b.shape_of(call)
    assert isinstance(source, int)
    if b.nodes[source].shape == shape:
        return source
    return b.affine(
        call, [source], lambda xs, cs: xs[0].reshape(xs[0].shape[0], *shape), shape=shape, terms=MOVED, roundings=0
    )


@rule("permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims")
def permute(b: Builder, call: Call) -> Value:
    """A reordering of the dimensions that leaves the batch in front."""
    source = b.signal(call, "self")
    rank = _rank(b, source)
    probe = torch.empty(tuple(range(2, rank + 2)), device="meta")  # sizes that tell the dimensions apart
    order = [n - 2 for n in call.run(self=probe).shape]
    if order[0] != 0:
        raise call.refuse("it moves the batch dimension.", "Keep the batch first.")
    return b.affine(call, [source], lambda xs, cs: xs[0].permute(order), terms=MOVED, roundings=0)


@rule("slice", "narrow", "select", "flip", "roll", "index_select")
def along_dimension(b: Builder, call: Call) -> Value:
    """Taking, reversing or rotating entries along a dimension."""
    source = b.signal(call, "self")
    dims = call.get("dims", call.get("dim"))
    listed = list(dims) if isinstance(dims, (list, tuple)) else [dims]
    if call.name == "roll" and not listed:
        raise call.refuse("it rolls across samples.", "Name the dimensions to roll.")
    if call.name == "slice" and call["dim"] % _rank(b, source) == 0:
        whole = call["start"] in (None, 0) and call["end"] in (None, 2**63 - 1) and call["step"] == 1
        if whole:
            return source
    _not_batch(b, call, source, *listed)
    if call.name == "index_select":
        return b.affine(
            call,
            [source],
            lambda xs, cs: xs[0].index_select(call["dim"], cs[0].long()),  # type: ignore[union-attr]
            coefficients=[lambda live: live(call["index"])],
            roundings=0,
        )
    return b.affine(
        call, [source], lambda xs, cs: call.run(self=xs[0]), terms=MOVED, roundings=0, form=_section(b, call, source)
    )


def _section(b: Builder, call: Call, source: int) -> Section | None:
    """What a slice without steps takes."""
    if call.name != "slice" or call["step"] != 1 or not isinstance(call["start"], (int, type(None))):
        return None
    dimension = call["dim"] % _rank(b, source) - 1
    whole, start = b.nodes[source].shape[dimension], call["start"] or 0
    start = max(0, start + whole) if start < 0 else start
    return Section(dimension, start, start + b.shape_of(call)[dimension])


@rule("chunk", "split", "split_with_sizes", "unbind", "tensor_split")
def pieces(b: Builder, call: Call) -> Value:
    """Cutting a signal into several along a dimension."""
    source = b.signal(call, "self")
    _not_batch(b, call, source, call.get("dim", 0))
    metas, dimension = call.node.meta["val"], call.get("dim", 0) % _rank(b, source) - 1
    shapes = [b.shape_of(call, meta) for meta in metas]
    lengths = [shape[dimension] for shape in shapes] if call.name != "unbind" else []
    starts = [0, *itertools.accumulate(lengths)]

    def piece(i: int) -> int:
        form = Section(dimension, starts[i], starts[i + 1]) if lengths else None
        return b.affine(
            call,
            [source],
            lambda xs, cs: call.run(self=xs[0])[i],
            shape=shapes[i],
            part=i,
            terms=MOVED,
            roundings=0,
            form=form,
        )

    return tuple(piece(i) for i in range(len(metas)))


@rule("cat", "concat", "concatenate", "stack")
def join(b: Builder, call: Call) -> Value:
    """Joining signals and constants; a constant part contributes zeros to the linear map."""
    tensors, dim = list(call["tensors"]), call["dim"]
    rank = call.node.meta["val"].ndim
    shape = b.shape_of(call)
    if dim % rank == 0:
        raise call.refuse("it joins along the batch dimension.")
    is_signal = [b.is_signal(t) for t in tensors]
    inputs: list[int] = []
    for tensor, signal in zip(tensors, is_signal, strict=True):
        if signal:
            index = b.values[tensor]
            assert isinstance(index, int)
            inputs.append(index)
        else:
            b.check_constant(call, tensor, 1)
    blank = [tuple(int(n) for n in t.meta["val"].shape[1:]) for t in tensors]
    combine = torch.stack if call.name == "stack" else torch.cat

    def apply(xs: Any, cs: Any) -> Tensor:
        rest = iter(xs)
        rows = xs[0]
        parts = [
            next(rest) if s else rows.new_zeros((rows.shape[0], *z)) for s, z in zip(is_signal, blank, strict=True)
        ]
        return combine(parts, dim=dim)

    def offset(live: Any) -> Tensor:
        parts = [
            torch.zeros((1, *z), dtype=live.dtype, device=live.device)
            if s
            else live(t).to(dtype=live.dtype, device=live.device)
            for t, s, z in zip(tensors, is_signal, blank, strict=True)
        ]
        return combine(parts, dim=dim)

    converted = any(t.meta["val"].dtype != call.node.meta["val"].dtype for t in tensors)  # integers, say
    return b.affine(
        call,
        inputs,
        apply,
        offset=None if all(is_signal) else offset,
        shape=shape,
        terms=MOVED,
        roundings=int(converted),
    )


@rule("pad", "constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
      "replication_pad2d", "replication_pad3d", "_pad_circular")  # fmt: skip
def pad(b: Builder, call: Call) -> Value:
    """Padding of every mode; a constant other than zero is an offset."""
    source = b.signal(call, "self")
    amounts = list(call.get("pad", call.get("padding")))
    if len(amounts) // 2 >= _rank(b, source):
        raise call.refuse("it pads the batch dimension.")
    value = call.get("value")
    constant = call.name == "constant_pad_nd" or (call.name == "pad" and call.get("mode", "constant") == "constant")
    terms, form = MOVED if constant else None, None
    if call.name == "_pad_circular" or call.get("mode") == "circular":  # amounts come from the last dimension on
        form = CircularPadding(tuple(zip(amounts[-2::-2], amounts[::-2], strict=True)))
    if not value:
        return b.affine(call, [source], lambda xs, cs: call.run(self=xs[0]), terms=terms, roundings=0, form=form)
    shape = b.nodes[source].shape

    def offset(live: Any) -> Tensor:
        return call.run(self=torch.zeros((1, *shape), dtype=live.dtype, device=live.device))  # type: ignore[no-any-return]

    neutral = 0 if call.name == "constant_pad_nd" else None
    return b.affine(
        call,
        [source],
        lambda xs, cs: call.run(self=xs[0], value=neutral),
        offset=offset,
        terms=terms,
        roundings=1 if value else 0,
    )


@rule("expand", "expand_as", "broadcast_to")
def expand(b: Builder, call: Call) -> Value:
    """Repeating entries along dimensions of size one."""
    shape = b.shape_of(call)
    source = b.carried(call, "self")
    assert isinstance(source, int)
    b.check_aligned(call, source, len(shape) + 1)
    return b.affine(call, [source], lambda xs, cs: xs[0].expand(xs[0].shape[0], *shape), shape=shape, roundings=0)


@rule("repeat", "tile")
def repeat(b: Builder, call: Call) -> Value:
    """Repeating a whole signal along its dimensions."""
    source = b.signal(call, "self")
    times = list(call.get("repeats", call.get("dims")))
    times = [1] * (_rank(b, source) - len(times)) + times
    if len(times) != _rank(b, source) or times[0] != 1:
        raise call.refuse("it repeats the batch or adds a dimension in front of it.")
    return b.affine(call, [source], lambda xs, cs: xs[0].repeat(times), roundings=0)


@rule("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "upsample_nearest1d",
      "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d",
      "_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d",
      "unfold", "im2col")  # fmt: skip
def resample(b: Builder, call: Call) -> Value:
    """Rearranging or interpolating space: torch's own linear operation."""
    name = "input" if "input" in call.arguments else "self"
    source = b.signal(call, name)
    if call.name == "unfold":
        _not_batch(b, call, source, call["dimension"])
    if _rank(b, source) < 3:
        raise call.refuse("its input has no batch dimension of its own.")
    interpolates = "linear" in call.name  # its weights are computed from coordinates, which round in a way of their own
    return b.affine(call, [source], lambda xs, cs: call.run(**{name: xs[0]}), roundings=None if interpolates else 0)


def getitem(b: Builder, node: fx.Node) -> Value | None:
    """One part of a call's several results; None where that part is not a signal (indices of a sort)."""
    parts = b.values[node.args[0]]  # type: ignore[index]
    assert isinstance(parts, tuple)
    position = node.args[1]
    assert isinstance(position, int)
    return parts[position] if 0 <= position < len(parts) else None
