"""What must be refused: name → (function or module, input shape, where and what the message says)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from catalogue import Fn

REFUSED: dict[str, Refusal] = {}


@dataclass(frozen=True)
class Refusal:
    """A module that has no Lipschitz bound, or that lipcert does not read; ``says`` is part of the message."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    says: tuple[str, ...]


def refuse(name: str, f: Callable[[Fn, Tensor], Tensor] | nn.Module, *says: str, shape: tuple[int, ...] = (4,)) -> None:
    """Register a refusal; a function gets a linear layer ``a`` and a buffer ``v`` of four entries."""
    assert name not in REFUSED, name

    def build() -> nn.Module:
        if isinstance(f, nn.Module):
            return nn.Sequential(f)
        torch.manual_seed(0)
        return Fn(f, a=nn.Linear(4, 4), v=torch.arange(4.0), count=torch.zeros(()))

    REFUSED[name] = Refusal(build, shape, says)


def _assign(y: Tensor) -> Tensor:
    y[:, 0] = 0
    return y


def _assign_into(y: Tensor, x: Tensor) -> Tensor:
    y[:, :2] = x[:, 2:]
    return y + x


def _scaled_in_place(w: Tensor) -> Tensor:
    w[0] = 7.0
    return w


def _inplace_later(z: Tensor) -> Tensor:
    y = z * 1
    return F.relu(y.view(-1, 2, 2), inplace=True).flatten(1) + y


def _inplace_view(z: Tensor) -> Tensor:
    z[:, :2].relu_()
    return z


def _autocast(s: Fn, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return s.a(x).float()


# --- no Lipschitz constant ----------------------------------------------------------------------------------------
refuse("softmax", lambda s, x: s.a(x).softmax(1), "softmax", "Return logits")
refuse("log-softmax", nn.LogSoftmax(1), "log_softmax", "submodule '0'", "Return logits")
refuse("logsumexp", lambda s, x: x.logsumexp(1, keepdim=True), "logsumexp")
refuse(
    "attention",
    nn.TransformerEncoderLayer(4, 1, 4, batch_first=True),
    "submodule '0.self_attn'",
    "MLP-Mixer",
    shape=(3, 4),
)
refuse("attention-call", lambda s, x: F.scaled_dot_product_attention(x, x, x), "attention", "MLP-Mixer", shape=(3, 4))
refuse("layer-norm", nn.LayerNorm(4), "layer_norm", "submodule '0'", "BatchNorm")
refuse("group-norm", nn.GroupNorm(2, 4), "group_norm", "submodule '0'", "BatchNorm", shape=(4, 3))
refuse("instance-norm", nn.InstanceNorm1d(4), "instance_norm", "submodule '0'", shape=(4, 3))
refuse("rms-norm", nn.RMSNorm(4), "submodule '0'")
refuse("local-response-norm", nn.LocalResponseNorm(2), "submodule '0'", shape=(4, 3))
refuse("product", lambda s, x: s.a(x) * x, "mul", "product of two signals")
refuse("swish-by-hand", lambda s, x: x * torch.sigmoid(x), "mul", "torch.nn.SiLU")
refuse("gate", nn.GLU(), "glu", "submodule '0'")
refuse("almost-softsign", lambda s, x: x / (2 + x.abs()), "div", "division by a signal")
refuse("almost-softsign-alpha", lambda s, x: x / torch.add(torch.ones(4), x.abs(), alpha=2), "div")
refuse("almost-softsign-of-another", lambda s, x: x / (1 + s.a(x).abs()), "div", "division by a signal")
refuse("division", lambda s, x: s.a(x) / (1 + x.abs()), "div", "division by a signal")
refuse("one-over", lambda s, x: 1 / (1 + x.abs()), "reciprocal")
refuse("power", lambda s, x: x.pow(2), "pow", "slope is unbounded")
refuse("square", lambda s, x: x.square(), "square", "slope is unbounded")
refuse("sqrt", lambda s, x: x.abs().sqrt(), "sqrt", "slope is unbounded")
refuse("exp", lambda s, x: x.exp(), "exp", "slope is unbounded")
refuse("log", lambda s, x: (x.abs() + 1).log(), "log", "slope is unbounded")
refuse("norm", lambda s, x: x.norm(dim=1, keepdim=True), "norm")
refuse("normalize", lambda s, x: F.normalize(x), "norm")
refuse("variance", lambda s, x: x.var(1, keepdim=True), "var")
refuse("matmul", lambda s, x: x.unsqueeze(1) @ s.a(x).unsqueeze(2) + 0 * x.unsqueeze(1), "matmul", "two signals")
refuse("einsum", lambda s, x: torch.einsum("bi,bi->b", x, s.a(x)).unsqueeze(1), "einsum", "two signals")
refuse("weight-from-input", lambda s, x: F.prelu(x, x.mean(0)), "reduces over the batch")
refuse("rnn", nn.RNN(4, 4, batch_first=True), "tuple", shape=(3, 4))
# --- jumps --------------------------------------------------------------------------------------------------------
refuse("where", lambda s, x: torch.where(x > 0, x, 0.1 * x), "gt", "not continuous")
refuse("sign", lambda s, x: x.sign(), "sign", "not continuous")
refuse("round", lambda s, x: x.round(), "round", "not continuous")
refuse("hardshrink", nn.Hardshrink(), "hardshrink", "not continuous")
refuse("threshold", nn.Threshold(0.5, 0.0), "threshold", "jumps")
refuse("softplus-low-threshold", nn.Softplus(threshold=3), "softplus", "jump", "submodule '0'")
refuse("softplus-negative-beta", nn.Softplus(beta=-1), "softplus", "submodule '0'")
refuse("integers", lambda s, x: x.argmax(1, keepdim=True), "argmax")
refuse("cast-to-integers", lambda s, x: x.long(), "another dtype")
refuse("cast-inside", lambda s, x: s.a(x).half().float(), "another dtype")
refuse("pool-indices", lambda s, x: (r := F.max_pool1d(x, 2, return_indices=True))[0] + r[1], "indices", shape=(2, 4))
refuse("sort-indices", lambda s, x: x.sort(1).indices + x, "indices")
refuse("topk-unsorted", lambda s, x: x.topk(2, 1, sorted=False).values, "topk", "order")
# --- not for each sample by itself --------------------------------------------------------------------------------
refuse("mean-of-all", lambda s, x: x - x.mean(), "mean", "over the batch")
refuse("sum-over-batch", lambda s, x: x - x.sum(0), "sum", "over the batch")
refuse("max-over-batch", lambda s, x: x - x.amax(0), "amax", "over the batch")
refuse("max-of-all", lambda s, x: x - x.max(), "max", "over the batch")
refuse("batch-statistics", nn.BatchNorm1d(4, track_running_stats=False), "statistics of the batch", "submodule '0'")
refuse("reshape-batch", lambda s, x: s.a(x.reshape(-1, 2).flip(1).reshape(-1, 4)), "batch")
refuse("reshape-away", lambda s, x: x.reshape(-1).roll(1).reshape(x.shape), "batch")
refuse("permute-batch", lambda s, x: x.permute(1, 0).relu().permute(1, 0), "batch")
refuse("nothing-left", lambda s, x: torch.cat([x[:, 4:], s.a(x)], 1), "slice", "empty")
refuse("no-rule", lambda s, x: x.cumsum(1), "cumsum", "no rule")
refuse("transpose-batch", lambda s, x: x.transpose(0, 1).relu().transpose(0, 1), "batch")
refuse("flip-batch", lambda s, x: x.flip(0), "flip", "batch")
refuse("roll-batch", lambda s, x: x.roll(1, 0), "roll", "batch")
refuse("roll-flat", lambda s, x: x.roll(1), "roll", "across samples")
refuse("cat-batch", lambda s, x: torch.cat([x, s.a(x)], 0)[: x.shape[0]], "cat", "batch")
refuse("slice-batch", lambda s, x: x - x[:1], "slice", "batch")
refuse("select-batch", lambda s, x: x - x[0], "select", "batch")
refuse("sort-batch", lambda s, x: x.sort(0).values, "sort", "batch")
refuse("chunk-batch", lambda s, x: torch.cat(x.split(1, 0)[:1] * 3)[: x.shape[0]], "batch")
refuse("pad-batch", lambda s, x: F.pad(x, (0, 0, 1, 0))[1:], "batch")
refuse("unbatched-conv", lambda s, x: F.conv1d(x, torch.ones(1, 1, 1)), "does not accept", shape=(4,))
refuse("outer-sum", lambda s, x: (x + x.unsqueeze(1)).amax(1), "batch", shape=(4,))
refuse("vector-times-matrix", lambda s, x: (torch.ones(3, 3) @ x)[:, :2], "batch", shape=(4,))
refuse("batch-in-arithmetic", lambda s, x: x / x.shape[0], "batch size")
refuse("batch-parity", lambda s, x: x * (1 + x.shape[0] % 2), "batch size")
refuse("batch-far-away", lambda s, x: x * (1 + x.shape[0] // 8), "batch size")
refuse("batch-of-ones", lambda s, x: x * torch.ones(x.shape[0]).sum(), "batch size")
refuse("batch-table", lambda s, x: x + torch.arange(9.0)[: x.shape[0], None].clamp(max=4), "batch size")
refuse("gradients-wanted", lambda s, x: x * (7 if torch.is_grad_enabled() else 1), "gradients are wanted")
refuse("softplus-that-jumps", lambda s, x: F.softplus(x, beta=1e-9), "jumps")
refuse("batch-as-feature", lambda s, x: x.unsqueeze(2).expand(-1, -1, x.shape[0]).amax(2), "batch size")
# --- not a function that can be read ------------------------------------------------------------------------------
refuse("branch-on-value", lambda s, x: x if x.sum() > 0 else -x, "cannot be recorded", "no `if` on values")
refuse("item", lambda s, x: x * x.abs().max().item(), "max")
refuse("fixed-batch", lambda s, x: x.view(3, 4), "cannot be recorded", "x.flatten(1)")
refuse("dropout-call", lambda s, x: F.dropout(x, 0.5), "random")
refuse("dropout-tiny", lambda s, x: F.dropout(x, 1e-12), "random")
refuse("noise", lambda s, x: x + torch.randn_like(x))
refuse("random-scale", lambda s, x: x * (1 + 1e-7 * torch.rand(4)), "random", "buffer")
refuse("rrelu-call", lambda s, x: F.rrelu(x, training=True), "rrelu", "random")
refuse("counter", lambda s, x: x * s.count.add_(1), "add_", "another network")
refuse("slice-assignment", lambda s, x: _assign(x.clone()), "in place")
refuse("slice-assignment-constant", lambda s, x: _assign_into(x.new_zeros(x.shape), x), "in place")
refuse("slice-assignment-zeros", lambda s, x: _assign_into(torch.zeros(x.shape[0], 4), x), "in place")
refuse("weight-changed-in-place", lambda s, x: x * _scaled_in_place(s.v * 1), "in place")
refuse("inplace-used-later", lambda s, x: _inplace_later(s.a(x)), "relu_", "in place", "F.relu(x)")
refuse("inplace-view-used-later", lambda s, x: _inplace_view(s.a(x)), "in place")
refuse("list-output", lambda s, x: [x], "list")
refuse("tuple-output", lambda s, x: (x, s.a(x)), "tuple", "Wrap it")
refuse("dict-output", lambda s, x: {"logits": x}, "dict")
refuse("scalar-output", lambda s, x: s.a(x).sum(1), "at least one more")
refuse("no-batch-output", lambda s, x: x.sum(), "keep the batch")
refuse("constant-output", lambda s, x: s.v.expand(x.shape[0], 4), "does not depend on its input")
refuse("half-output-by-autocast", _autocast, "autocast")
