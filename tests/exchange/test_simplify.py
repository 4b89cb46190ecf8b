"""Activations that exporters take apart, and sizes that they compute: read as what they are, or not at all."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lipcert
from lipcert.errors import ImportFileError, UnsupportedError
from lipcert.exchange import load_onnx

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "gelu": nn.GELU,
    "gelu, tanh": lambda: nn.GELU("tanh"),
    "hardswish": nn.Hardswish,
    "softplus": nn.Softplus,
    "softplus, steep": lambda: nn.Softplus(beta=3.0),
    "softsign": nn.Softsign,
    "softshrink": lambda: nn.Softshrink(0.25),
}


def _exported(net: nn.Module, shape: tuple[int, ...], path: Path, *, dynamo: bool, opset: int) -> None:
    options: dict[str, Any] = {"dynamic_axes": {"x": {0: "n"}}}
    if dynamo:
        options = {"dynamic_shapes": ({0: torch.export.Dim("n")},)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (torch.rand(2, *shape),), str(path), dynamo=dynamo, input_names=["x"], verbose=False,
            opset_version=opset, **options,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "dynamo", "opset"),
    [*((n, False, o) for n in ACTIVATIONS for o in (11, 17)), *((n, True, 18) for n in list(ACTIVATIONS)[::3])],
)
def test_activations(name: str, dynamo: bool, opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), ACTIVATIONS[name](), nn.Linear(5, 3)).eval()
    _exported(net, (4,), tmp_path / "net.onnx", dynamo=dynamo, opset=opset)
    again = load_onnx(tmp_path / "net.onnx")
    assert float(lipcert.lipschitz(again, (4,))) == pytest.approx(float(lipcert.lipschitz(net, (4,))), rel=1e-6)
    x = 9 * torch.randn(64, 4)
    torch.testing.assert_close(again(x), net(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pad", [nn.ZeroPad2d(1), nn.ReflectionPad2d(2), nn.ReplicationPad2d(1)])
def test_amounts_of_padding(pad: nn.Module, tmp_path: Path) -> None:
    net = nn.Sequential(pad, nn.Conv2d(2, 3, 3), nn.ReLU()).eval()
    _exported(net, (2, 6, 6), tmp_path / "net.onnx", dynamo=False, opset=17)
    again = load_onnx(tmp_path / "net.onnx")
    same = pytest.approx(float(lipcert.lipschitz(net, (2, 6, 6))), rel=1e-6)
    assert float(lipcert.lipschitz(again, (2, 6, 6))) == same


def _file(path: Path, nodes: list[tuple[str, list[str], list[str], dict[str, Any]]], **constants: Any) -> Path:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node(op, i, o, **a) for op, i, o, a in nodes],
        "net",
        [helper.make_tensor_value_info("x", kind, ("n", 4))],
        [helper.make_tensor_value_info("y", kind, ("n", None))],
        [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), str(path))
    return path


_HALF = np.float32(0.5)


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        # gates of another signal, or another number
        ([("Sigmoid", ["w"], ["s"], {}), ("Neg", ["x"], ["w"], {}), ("Mul", ["x", "s"], ["y"], {})], {}),
        ([("HardSigmoid", ["x"], ["s"], {}), ("Mul", ["x", "s"], ["y"], {})], {}),
        (
            [
                ("Div", ["x", "r"], ["d"], {}),
                ("Erf", ["d"], ["e"], {}),
                ("Add", ["e", "o"], ["p"], {}),
                ("Mul", ["x", "p"], ["q"], {}),
                ("Mul", ["q", "h"], ["y"], {}),
            ],
            {"r": np.float32(1.4), "o": np.float32(1.0), "h": _HALF},
        ),
    ],
)
def test_what_only_looks_like_one(nodes: list[Any], constants: dict[str, Any], tmp_path: Path) -> None:
    nodes = sorted(nodes, key=lambda n: n[0] != "Neg")
    with pytest.raises(UnsupportedError):
        lipcert.lipschitz(load_onnx(_file(tmp_path / "net.onnx", nodes, **constants)), (4,))


@pytest.mark.parametrize(
    ("nodes", "constants", "said"),
    [
        # a jump: 0 below the threshold, and x above it
        (
            [("LessOrEqual", ["x", "t"], ["c"], {}), ("Where", ["c", "v", "x"], ["y"], {})],
            {"t": _HALF, "v": np.float32(0.0)},
            "Where",
        ),
        ([("Shrink", ["x"], ["y"], {"lambd": 0.5})], {}, "jumps"),
        ([("Shape", ["x"], ["s"], {}), ("Cast", ["s"], ["y"], {"to": 1})], {}, "not a floating-point tensor"),
        (
            [("Mul", ["x", "w"], ["z"], {}), ("Sigmoid", ["z"], ["s"], {}), ("Log", ["s"], ["y"], {})],
            {"w": np.float32(1.0)},
            "not finite",
        ),
        (
            [("ConstantOfShape", ["s"], ["z"], {}), ("Add", ["x", "z"], ["y"], {})],
            {"s": np.array([1, 2**40], np.int64)},
            "constants folded",
        ),
        (
            [("Div", ["a", "b"], ["s"], {}), ("Reshape", ["x", "s"], ["y"], {})],
            {"a": np.array([4], np.int64), "b": np.array([[1], [2]], np.float64)},
            "",
        ),
    ],
)
def test_refusals(nodes: list[Any], constants: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ImportFileError, match=said):
        load_onnx(_file(tmp_path / "net.onnx", nodes, **constants))


def test_an_activation_that_is_used_elsewhere_too(tmp_path: Path) -> None:
    """σ(x) is an output of its own beside x·σ(x)."""
    nodes: list[Any] = [
        ("Sigmoid", ["x"], ["s"], {}),
        ("Mul", ["s", "x"], ["m"], {}),
        ("Concat", ["s", "m"], ["y"], {"axis": 1}),
    ]
    module = load_onnx(_file(tmp_path / "net.onnx", nodes))
    assert [s.operator for s in module.steps.values()] == ["Sigmoid", "Swish", "Concat"]  # type: ignore[union-attr]
    assert 1.0 < float(lipcert.lipschitz(module, (4,))) < 1.3
