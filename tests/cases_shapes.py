"""Cases: pooling of every kind, and the ways of moving, cutting, joining and scaling signals."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from catalogue import function, layers


def _conv() -> list[nn.Module]:
    return [nn.Conv2d(1, 3, 3, padding=1), nn.ReLU()]


def _conv1() -> list[nn.Module]:
    return [nn.Conv1d(1, 3, 3, padding=1), nn.ReLU()]


# --- pooling ------------------------------------------------------------------------------------------------------
for _name, _pool in {
    "avg": lambda: nn.AvgPool2d(2),
    "avg-padded": lambda: nn.AvgPool2d(3, stride=2, padding=1),
    "avg-uncounted": lambda: nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False, ceil_mode=True),
    "avg-divisor": lambda: nn.AvgPool2d(2, divisor_override=3),
    "adaptive-avg": lambda: nn.AdaptiveAvgPool2d((2, 4)),
    "adaptive-avg-one": lambda: nn.AdaptiveAvgPool2d(1),
    "max": lambda: nn.MaxPool2d(2),
    "max-overlapping": lambda: nn.MaxPool2d(3, stride=1),
    "max-padded": lambda: nn.MaxPool2d((3, 2), stride=(2, 1), padding=1),
    "max-dilated": lambda: nn.MaxPool2d(2, stride=1, dilation=2),
    "max-ceil": lambda: nn.MaxPool2d(3, stride=2, ceil_mode=True),
    "max-ceil-padded": lambda: nn.MaxPool2d(4, stride=3, padding=2, ceil_mode=True),
    "max-gaps": lambda: nn.MaxPool2d(1, stride=2),
    "adaptive-max": lambda: nn.AdaptiveMaxPool2d((3, 2)),
    "adaptive-max-uneven": lambda: nn.AdaptiveMaxPool2d((4, 5)),
    "adaptive-max-larger": lambda: nn.AdaptiveMaxPool2d((9, 7)),
}.items():
    layers(f"pool-{_name}", (1, 6, 7), lambda p=_pool: [*_conv(), p()], "chain")
layers("pool-max-first", (2, 6, 7), lambda: [nn.MaxPool2d(3, 2), nn.Conv2d(2, 2, 1), nn.ReLU()], "chain")
layers("pool-max1d", (1, 9), lambda: [*_conv1(), nn.MaxPool1d(3, 2, padding=1)], "chain")
layers("pool-adaptive-max1d", (1, 9), lambda: [*_conv1(), nn.AdaptiveMaxPool1d(4)], "chain")
layers("pool-avg1d", (1, 9), lambda: [*_conv1(), nn.AvgPool1d(2), nn.AdaptiveAvgPool1d(3)], "chain")
layers("pool-max3d", (1, 4, 4, 4), lambda: [nn.Conv3d(1, 2, 2), nn.ReLU(), nn.MaxPool3d(2, 1)], "chain")
layers("pool-avg3d", (1, 4, 4, 4), lambda: [nn.AvgPool3d(2), nn.AdaptiveAvgPool3d(1)], "chain")
layers("pool-twice", (1, 8, 8), lambda: [nn.MaxPool2d(2, 1), *_conv(), nn.MaxPool2d(3, 2), nn.AvgPool2d(2)], "chain")

# --- moving -------------------------------------------------------------------------------------------------------
_parts = {"c": lambda: nn.Conv2d(2, 4, 2), "d": lambda: nn.Linear(16, 3)}  # (2, 3, 3) → (4, 2, 2) → 3
for _name, _f in {
    "permute": lambda s, x: s.d(F.relu(s.c(x)).permute(0, 2, 3, 1).flatten(1)),
    "transpose": lambda s, x: s.d(s.c(x).transpose(1, -1).relu().transpose(2, 3).reshape(-1, 16)),
    "movedim": lambda s, x: s.d(s.c(x).movedim(1, 3).relu().swapaxes(1, 2).flatten(1)),
    "view": lambda s, x: s.d(s.c(x).view(x.size(0), -1).relu().unflatten(1, (2, -1)).flatten(1, 2)),
    "squeeze": lambda s, x: s.d(F.relu(s.c(x)).flatten(1).unsqueeze(1).squeeze(1)),
    "flip-roll": lambda s, x: s.d(s.c(x.flip((2, 3))).relu().roll((1, -1), (1, 2)).flatten(1)),
    "pad": lambda s, x: s.d(s.c(F.pad(x, (1, 0, 0, 1))).relu()[:, :, 1:, :2].flatten(1)),
    "pad-value": lambda s, x: s.d(s.c(F.pad(x, (0, 1), value=2.5)).relu()[..., :2].flatten(1)),
    "pad-crop": lambda s, x: s.d(F.pad(F.relu(s.c(x)), (-1, 1, 1, -1)).flatten(1)),
    "pad-circular": lambda s, x: s.d(s.c(F.pad(x, (1, 1, 2, 0), mode="circular")).relu()[:, :, ::2, ::2].flatten(1)),
    "pad-reflect": lambda s, x: s.d(s.c(F.pad(x, (2, 2, 1, 0), mode="reflect")).relu()[:, :, :2, 1:5:2].flatten(1)),
    "slice": lambda s, x: s.d(torch.cat([s.c(x).relu()[:, 1:], s.c(x)[:, :1]], 1).flatten(1)),
    "select": lambda s, x: s.d(torch.stack([s.c(x)[:, i].relu() for i in (3, 1, 0, 2)], -3).flatten(1)),
    "narrow": lambda s, x: s.d(s.c(x).narrow(1, 1, 2).relu().repeat(1, 2, 1, 1).flatten(1)),
    "index-select": lambda s, x: s.d(s.c(x).relu().index_select(1, s.i).flatten(1)),
    "unbind": lambda s, x: s.d(sum(s.c(x).relu().unbind(1)).flatten(1).repeat(1, 4)),
    "split-sizes": lambda s, x: s.d(torch.cat([p.relu() for p in s.c(x).split([3, 1], 1)], 1).flatten(1)),
    "split-uneven": lambda s, x: s.d(torch.cat([p.tanh() for p in s.c(x).split(3, 1)][::-1], 1).flatten(1)),
    "chunk-uneven": lambda s, x: s.d(torch.cat([p.relu() for p in s.c(x).flatten(1).chunk(5, 1)], 1)),
    "tensor-split": lambda s, x: s.d(torch.cat([p.relu() for p in s.c(x).flatten(1).tensor_split(3, 1)], 1)),
    "expand": lambda s, x: s.d(s.c(x).mean((2, 3), keepdim=True).relu().expand(-1, -1, 2, 2).flatten(1)),
    "reductions": lambda s, x: s.d(
        torch.cat([s.c(x).relu().mean(1).flatten(1), s.c(x).sum((2, 3)), s.c(x).tanh().mean(dim=-1).flatten(1)], 1)
    ),
    "pixel-shuffle": lambda s, x: s.d(F.pixel_unshuffle(F.pixel_shuffle(s.c(x), 2).relu(), 2).flatten(1)),
    "channel-shuffle": lambda s, x: s.d(F.channel_shuffle(s.c(x).relu(), 2).flatten(1)),
    "nearest": lambda s, x: s.d(F.interpolate(s.c(x), scale_factor=3).relu()[..., ::3, ::3].flatten(1)),
    "nearest-size": lambda s, x: s.d(F.interpolate(s.c(x), size=(3, 5)).relu()[..., 1:, 1:5:2].flatten(1)),
    "bilinear": lambda s, x: s.d(F.interpolate(s.c(x), size=(3, 5), mode="bilinear").relu()[..., 1:, 2:4].flatten(1)),
    "bilinear-corners": lambda s, x: s.d(
        F.interpolate(s.c(x), scale_factor=2, mode="bilinear", align_corners=True).relu()[..., 1:3, 1:3].flatten(1)
    ),
    "unfold": lambda s, x: s.d(F.linear(F.unfold(s.c(x), 2, padding=1).relu().mean(2), s.w)),
    "tensor-unfold": lambda s, x: s.d(s.c(x).unfold(2, 1, 1).relu().flatten(1)),
}.items():
    _more = {"i": lambda: torch.tensor([2, 2, 0, 1])} if "index" in _name else {}
    _more |= {"w": lambda: torch.randn(16, 16)} if _name == "unfold" else {}
    function(f"move-{_name}", (2, 3, 3), _f, "twin", **_parts, **_more)

# --- arithmetic ---------------------------------------------------------------------------------------------------
_two = {"a": lambda: nn.Linear(4, 5), "b": lambda: nn.Linear(4, 5), "d": lambda: nn.Linear(5, 3)}
_const = {"v": lambda: torch.randn(5), "w": lambda: torch.randn(5, 5), "p": lambda: nn.Parameter(torch.randn(1))}
for _name, _f in {
    "add-alpha": lambda s, x: s.d(torch.add(s.a(x).relu(), s.b(x).tanh(), alpha=-1.5)),
    "sub": lambda s, x: s.d((s.a(x).relu() - s.b(x)).relu()),
    "rsub": lambda s, x: s.d(F.relu(1.5 - s.a(x))),
    "rsub-tensor": lambda s, x: s.d(F.relu(s.v - s.a(x)) + torch.rsub(s.b(x), s.v, alpha=2)),
    "neg": lambda s, x: s.d(-F.relu(-s.a(x))),
    "scale": lambda s, x: s.d(F.relu(3 * s.a(x)) / 7 * 0.3),
    "scale-tensor": lambda s, x: s.d(F.relu(s.a(x) * s.v) / s.v.abs()),
    "scale-parameter": lambda s, x: s.d(s.p * F.relu(s.a(x)) + s.p.exp() * s.b(x)),
    "broadcast-add": lambda s, x: s.d(F.relu(s.a(x)) + s.b(x).sum(1, keepdim=True)),
    "constant-add": lambda s, x: s.d(F.relu(s.a(x) + s.v) - 2.0),
    "matmul": lambda s, x: s.d(F.relu(s.a(x) @ s.w)),
    "matmul-left": lambda s, x: s.d(torch.matmul(s.w, s.a(x).unsqueeze(2)).squeeze(2).relu()),
    "mm-addmm": lambda s, x: s.d(torch.addmm(s.v, torch.mm(s.a(x), s.w).relu(), s.w, beta=0.5, alpha=2)),
    "einsum": lambda s, x: s.d(torch.einsum("bi, oi -> bo", s.a(x), s.w).relu()),
    "einsum-two-weights": lambda s, x: s.d(
        torch.einsum("bi,io->bo", s.a(x), s.w).relu() + torch.einsum("bi,io->bo", s.a(x), s.w + 1.0)
    ),
    "einsum-three": lambda s, x: s.d(torch.einsum("ij,bj,j->bi", s.w, s.a(x), s.v).relu()),
    "cat-constant": lambda s, x: s.d(torch.cat([s.a(x).relu()[:, :3], s.v.expand(x.shape[0], 5)[:, :2]], 1)),
    "cat-either-side": lambda s, x: s.d(
        torch.cat([x, s.v[None, :1].expand(x.shape[0], 1)], 1).relu()
        + torch.cat([s.v[None, :1].expand(x.shape[0], 1), x], 1)
    ),
    "stack-constant": lambda s, x: s.d(torch.stack([s.a(x), s.v.expand(x.shape[0], 5)], 2).relu().mean(2)),
    "scalar-feature": lambda s, x: s.d(x.sum(1).relu().unsqueeze(1).expand(-1, 5)),
    "weight-expression": lambda s, x: s.d(F.linear(s.a(x), s.w.tanh() @ s.w.T / s.w.norm()).relu()),
    "same-twice": lambda s, x: s.d(s.a(x).relu() + s.a(x).relu()),
}.items():
    function(f"math-{_name}", (4,), _f, "twin", **_two, **_const)
function(
    "math-divide-by-integers",
    (3,),
    lambda s, x: F.relu(x / s.n) @ s.w,
    n=lambda: torch.tensor([11, 13, 49]),
    w=lambda: torch.randn(3, 3),
)
