"""What is refused by name: the reason, and what to use instead."""

from __future__ import annotations

from lipcert.graph.builder import RULES, Builder, Call, Value

__all__ = ["REFUSED"]

_NO_CONSTANT = "it has no global Lipschitz constant."
_JUMPS = "it is not continuous."
_NORM = (
    _NO_CONSTANT,
    "Statistics of the sample divide the signal. Use BatchNorm (a fixed affine map in eval), or no normalisation.",
)
_ATTENTION = (_NO_CONSTANT, "Use convolutions, fixed mixing matrices (MLP-Mixer) or pooling.")
_LOGITS = (
    "softmax is not part of what is bounded.",
    "Return logits: the radius is about logit margins, and log-softmax does not change them. As attention it has "
    "no global Lipschitz constant.",
)
_POWER = ("its slope is unbounded.", "Use an activation with bounded slopes, such as ReLU or tanh.")
_RECURRENT = (
    "recurrent cells multiply gates.",
    "Unroll a cell of linear maps and tanh or ReLU for a fixed length.",
)

REFUSED: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("layer_norm", "native_layer_norm", "group_norm", "native_group_norm", "instance_norm",
                     "rms_norm", "_fused_rms_norm", "normalize", "local_response_norm"), _NORM),
    **dict.fromkeys(("scaled_dot_product_attention", "_native_multi_head_attention"), _ATTENTION),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax", "logsumexp"), _LOGITS),
    **dict.fromkeys(("pow", "square", "sqrt", "rsqrt", "exp", "expm1", "log", "log1p", "log2", "log10",
                     "reciprocal", "tan", "sinh", "cosh", "prod", "var", "std"), _POWER),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell"), _RECURRENT),
    **dict.fromkeys(("sign", "round", "floor", "ceil", "trunc", "heaviside", "hardshrink", "where", "gt", "lt",
                     "ge", "le", "eq", "argmax", "argmin", "masked_fill"), (_JUMPS, "Use a continuous activation.")),
    "embedding": ("its input is a table index, not a point of a vector space.", "Bound the network after it."),
    "bmm": ("it multiplies two signals.", "Dot-product attention cannot be bounded; use fixed mixing weights."),
    "bilinear": ("it multiplies two signals.", "Use a linear layer of the concatenated signals."),
    "glu": ("a gate multiplies two signals.", "Use ReLU, GELU or SiLU."),
}  # fmt: skip


def _refuse(b: Builder, call: Call) -> Value:
    reason, remedy = REFUSED[call.name]
    raise call.refuse(reason, remedy)


for _name in REFUSED:
    RULES[_name] = _refuse
