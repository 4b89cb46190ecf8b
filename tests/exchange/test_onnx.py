"""ONNX in and out: the same function and the same bound, or an error that says why."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lipcert
from cases import CASES
from lipcert.errors import ImportFileError, ModuleStateError, UnsupportedError
from lipcert.exchange import load_onnx, save_exported, save_onnx
from lipcert.exchange.operators import OPERATORS
from lipcert.layers import PairwiseLinear, ResidualConv2d, SmallGainConv2d

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

ROUND_TRIPS = ["published-lenet5", "published-resnet18", "published-unet", "published-mixer", "published-mobilenet"]


def _export(module: nn.Module, shape: tuple[int, ...], path: Path, *, dynamo: bool, batch: bool = True) -> None:
    """By either of torch's exporters, for a batch of any size or of two."""
    x = torch.rand(2, *shape)
    options: dict[str, Any] = {}
    if batch and dynamo:
        options["dynamic_shapes"] = ({0: torch.export.Dim("batch")},)
    elif batch:
        options["dynamic_axes"] = {"x": {0: "batch"}}
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(module, (x,), str(path), dynamo=dynamo, input_names=["x"], verbose=False, **options)
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize(
    ("name", "dynamo"), [*((n, False) for n in ROUND_TRIPS), *((n, True) for n in ROUND_TRIPS[::2])]
)
def test_the_same_bound(name: str, dynamo: bool, tmp_path: Path) -> None:
    case = CASES[name]
    module = case.module(torch.float32)
    _export(module, case.shape, tmp_path / "net.onnx", dynamo=dynamo)
    again = load_onnx(tmp_path / "net.onnx")
    assert again.input_shape == case.shape
    x = case.inputs(5, dtype=torch.float32)
    torch.testing.assert_close(again(x), module(x), rtol=1e-4, atol=1e-5)
    bounds = [float(lipcert.lipschitz(m, case.shape)) for m in (module, again)]
    assert bounds[1] == pytest.approx(bounds[0], rel=1e-6)


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize("name", ["published-lenet5", "published-mobilenet"])
def test_a_file_for_one_size_of_batch(name: str, dynamo: bool, tmp_path: Path) -> None:
    case = CASES[name]
    module = case.module(torch.float32)
    _export(module, case.shape, tmp_path / "net.onnx", dynamo=dynamo, batch=False)
    again = load_onnx(tmp_path / "net.onnx")
    x = case.inputs(5, dtype=torch.float32)
    torch.testing.assert_close(again(x), module(x), rtol=1e-4, atol=1e-5)
    assert float(lipcert.lipschitz(again, case.shape)) == pytest.approx(float(lipcert.lipschitz(module, case.shape)))


# --- files made by hand -----------------------------------------------------------------------------------------------
def _file(
    path: Path,
    nodes: list[Any],
    shape: tuple[Any, ...] = ("n", 4),
    output: tuple[Any, ...] = ("n", None),
    constants: dict[str, np.ndarray] | None = None,
    opset: int = 18,
    inputs: int = 1,
) -> Path:
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    given = [helper.make_tensor_value_info(f"x{i}" if i else "x", kind, shape) for i in range(inputs)]
    graph = helper.make_graph(
        nodes,
        "net",
        given,
        [helper.make_tensor_value_info("y", kind, output)],
        [onnx.numpy_helper.from_array(v, k) for k, v in (constants or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, str(path))
    return path


def _node(operator: str, inputs: list[str], outputs: list[str], **attributes: Any) -> Any:
    return onnx.helper.make_node(operator, inputs, outputs, **attributes)


_f = np.float32
_image = (("n", 4, 6, 6), ("n", None, None, None))

# name: (nodes, constants, shape of the input, of the output)
OPERATIONS: dict[str, tuple[list[Any], dict[str, np.ndarray], tuple[Any, ...], tuple[Any, ...]]] = {}


def _operation(
    name: str, nodes: Callable[[], list[Any]], constants: dict[str, Any] | None = None, image: bool = False
) -> None:
    arrays = {
        k: np.asarray(v, np.int64 if np.asarray(v).dtype.kind == "i" else _f) for k, v in (constants or {}).items()
    }
    OPERATIONS[name] = (nodes(), arrays, *(_image if image else (("n", 4), ("n", None))))


_random = np.random.default_rng(0)
_operation("gemm", lambda: [_node("Gemm", ["x", "w", "b"], ["y"], alpha=2.0, beta=0.5)],
           {"w": _random.normal(size=(4, 3)), "b": _random.normal(size=3)})  # fmt: skip
_operation("conv, same upper", lambda: [_node("Conv", ["x", "w"], ["y"], strides=[2, 2], auto_pad="SAME_UPPER")],
           {"w": _random.normal(size=(3, 4, 3, 3))}, True)  # fmt: skip
_operation("conv, same lower", lambda: [_node("Conv", ["x", "w"], ["y"], strides=[2, 2], auto_pad="SAME_LOWER")],
           {"w": _random.normal(size=(3, 4, 4, 4))}, True)  # fmt: skip
_operation("conv, uneven padding", lambda: [_node("Conv", ["x", "w"], ["y"], pads=[0, 1, 2, 0], group=2)],
           {"w": _random.normal(size=(4, 2, 3, 3))}, True)  # fmt: skip
_operation("max pool, uneven", lambda: [_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], pads=[0, 0, 1, 1],
                                              strides=[2, 2])], image=True)  # fmt: skip
_operation("average pool", lambda: [_node("AveragePool", ["x"], ["y"], kernel_shape=[3, 3], pads=[1, 1, 1, 1])],
           image=True)  # fmt: skip
_operation("global pools", lambda: [_node("GlobalAveragePool", ["x"], ["a"]), _node("GlobalMaxPool", ["x"], ["b"]),
                                    _node("Concat", ["a", "b"], ["y"], axis=1)], image=True)  # fmt: skip
_operation("depth to space", lambda: [_node("DepthToSpace", ["x"], ["y"], blocksize=2)], image=True)
_operation("depth to space, CRD", lambda: [_node("DepthToSpace", ["x"], ["y"], blocksize=2, mode="CRD")], image=True)
_operation("space to depth", lambda: [_node("SpaceToDepth", ["x"], ["y"], blocksize=2)], image=True)
_operation(
    "resize, nearest", lambda: [_node("Resize", ["x", "", "s"], ["y"], mode="nearest")], {"s": [1.0, 1, 2, 3]}, True
)
_operation(
    "resize, linear", lambda: [_node("Resize", ["x", "", "s"], ["y"], mode="linear")], {"s": [1.0, 1, 2, 2]}, True
)
_operation("pad", lambda: [_node("Pad", ["x", "p"], ["y"], mode="reflect")], {"p": [0, 0, 1, 2, 0, 0, 2, 1]}, True)
_operation("slices", lambda: [_node("Slice", ["x", "b", "e", "a", "s"], ["y"])],
           {"b": [1, -5], "e": [9, 6], "a": [1, 2], "s": [2, 2]}, True)  # fmt: skip
_operation("reversal", lambda: [_node("Slice", ["x", "b", "e", "a", "s"], ["y"])],
           {"b": [-1], "e": [-99], "a": [1], "s": [-1]})  # fmt: skip
_operation(
    "split", lambda: [_node("Split", ["x", "n"], ["a", "b"], axis=1), _node("Max", ["a", "b"], ["y"])], {"n": [2, 2]}
)
_operation("gather", lambda: [_node("Gather", ["x", "i"], ["y"], axis=1)], {"i": [[3, 0], [-1, 2]]}, True)
_operation("shape arithmetic", lambda: [
    _node("Shape", ["x"], ["s"]), _node("Gather", ["s", "zero"], ["n"]), _node("Unsqueeze", ["n", "axis"], ["n1"]),
    _node("Concat", ["n1", "rest"], ["t"], axis=0), _node("Reshape", ["x", "t"], ["y"])],
           {"zero": np.int64(0), "axis": [0], "rest": [2, 2]})  # fmt: skip
_operation("reductions", lambda: [_node("ReduceMean", ["x", "a"], ["m"], keepdims=1), _node("Sub", ["x", "m"], ["d"]),
                                  _node("ReduceMax", ["d", "b"], ["y"], keepdims=0)],
           {"a": [1], "b": [2, 3]}, True)  # fmt: skip
_operation("activations", lambda: [
    _node("LeakyRelu", ["x"], ["a"], alpha=0.3), _node("Elu", ["a"], ["b"], alpha=0.5),
    _node("Clip", ["b", "l", "h"], ["c"]),
    _node("PRelu", ["c", "p"], ["d"]), _node("HardSigmoid", ["d"], ["e"]), _node("Softplus", ["e"], ["y"])],
           {"l": np.float32(-0.4), "h": np.float32(2.0), "p": _random.normal(size=(4, 1, 1))}, True)  # fmt: skip
_operation("unsqueeze", lambda: [_node("Unsqueeze", ["x", "a"], ["z"]), _node("Reshape", ["z", "s"], ["y"])],
           {"a": [-1, 1], "s": [0, -1]})  # fmt: skip
_operation("the largest", lambda: [_node("TopK", ["x", "k"], ["y", "i"], axis=1)], {"k": [2]}, True)
_operation("constants", lambda: [_node("Constant", [], ["c"], value_floats=[1.0, 2.0, 3.0, 4.0]),
                                 _node("Constant", [], ["d"], value_float=0.5), _node("Mul", ["x", "c"], ["z"]),
                                 _node("Div", ["z", "d"], ["w"]), _node("Sum", ["w", "c", "x"], ["y"])])  # fmt: skip


@pytest.mark.parametrize("name", OPERATIONS)
def test_operators(name: str, tmp_path: Path) -> None:
    """Reading compares with another implementation of ONNX; here it is traced, and a Jacobian set beside its bound."""
    nodes, constants, shape, output = OPERATIONS[name]
    module = load_onnx(_file(tmp_path / "net.onnx", nodes, shape, output, constants))
    assert module.input_shape == shape[1:]
    bound = float(lipcert.lipschitz(module.double(), module.input_shape))
    for seed in range(3):
        x = torch.randn(module.input_shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        jacobian = torch.autograd.functional.jacobian(lambda v: module(v[None])[0].flatten(), x)
        assert float(torch.linalg.matrix_norm(jacobian.flatten(1), 2)) <= bound * (1 + 1e-6)


_BIG = {"shape": ("n", 4, 3, 4), "output": ("n", None, None, None)}
_RESIZED = {**_BIG, "constants": {"s": np.array([1, 1, 2, 2], _f)}}


@pytest.mark.parametrize(
    ("nodes", "options", "said"),
    [
        ([("Relu", ["x"], ["y"], {})], {"shape": ("n", "k")}, "must be known"),
        ([("Add", ["x", "x1"], ["y"], {})], {"inputs": 2}, "2 inputs"),
        ([("NonZero", ["x"], ["z"], {}), ("Relu", ["z"], ["y"], {})], {}, "does not read: NonZero"),
        ([("Flatten", ["x"], ["y"], {"axis": 0})], {}, "keep the batch"),
        ([("Gemm", ["x", "w"], ["y"], {"transA": 1})], {"constants": {"w": np.ones((3, 2), _f)}}, "transA"),
        (
            [("PRelu", ["x", "w"], ["y"], {})],
            {**_BIG, "constants": {"w": np.array([0, 0, 0, 9], _f)}},
            "for each channel",
        ),
        ([("Resize", ["x", "", "s"], ["y"], {"nearest_mode": "floor"})], _RESIZED, "Resize in mode nearest"),
        (
            [("Resize", ["x", "", "s"], ["y"], {"coordinate_transformation_mode": "align_corners"})],
            _RESIZED,
            "align_corners",
        ),
        ([("Resize", ["x", "", "s"], ["y"], {"mode": "cubic"})], _RESIZED, "cubic"),
    ],
)
def test_what_is_not_read(nodes: list[Any], options: dict[str, Any], said: str, tmp_path: Path) -> None:
    made = [_node(op, i, o, **a) for op, i, o, a in nodes]
    with pytest.raises(ImportFileError, match=said):
        load_onnx(_file(tmp_path / "net.onnx", made, **options))


def test_no_file_and_no_onnx(tmp_path: Path) -> None:
    with pytest.raises(ImportFileError, match="there is no file"):
        load_onnx(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"this is not a network")
    with pytest.raises(ImportFileError, match=r"not a valid ONNX file|0 inputs"):
        load_onnx(tmp_path / "bad.onnx")


def test_softmax_is_refused_where_modules_are(tmp_path: Path) -> None:
    module = load_onnx(_file(tmp_path / "net.onnx", [_node("Softmax", ["x"], ["y"], axis=1)]))
    with pytest.raises(UnsupportedError, match="Return logits"):
        lipcert.trace(module, (4,))


def test_a_wrong_reading_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = _file(tmp_path / "net.onnx", [_node("Relu", ["x"], ["y"])])
    monkeypatch.setitem(OPERATORS, "Relu", lambda _, x: x.tanh())
    with pytest.raises(ImportFileError, match="computes something else"):
        load_onnx(file)
    load_onnx(file, check=False)


def test_a_large_constant_does_not_hide_a_wrong_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [_node("Relu", ["x"], ["z"]), _node("Add", ["z", "c"], ["y"])]
    file = _file(tmp_path / "net.onnx", nodes, constants={"c": np.array([5000, 0, 0, 0], _f)})
    load_onnx(file)
    monkeypatch.setitem(OPERATORS, "Relu", lambda _, x: 1.1 * x.relu())
    with pytest.raises(ImportFileError, match="computes something else"):
        load_onnx(file)


# --- out --------------------------------------------------------------------------------------------------------------
def _network() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        ResidualConv2d((2, 4, 4), 3), SmallGainConv2d((3, 4, 4)), nn.AvgPool2d(2), nn.Flatten(), PairwiseLinear(12, 3)
    )
    return net.eval()


def test_out_and_in_again(tmp_path: Path) -> None:
    net = _network()
    save_onnx(net, (2, 4, 4), tmp_path / "net.onnx")
    again = load_onnx(tmp_path / "net.onnx")
    x = torch.rand(7, 2, 4, 4)
    torch.testing.assert_close(again(x), net(x), rtol=1e-3, atol=1e-3)
    found = lipcert.lipschitz(again, (2, 4, 4), method="smallgain", scope="pairwise", guarantee="upper")
    assert float(found.value.max()) <= 1.01
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    save_exported(net, (2, 4, 4), tmp_path / "net.pt2")
    torch.testing.assert_close(torch.export.load(tmp_path / "net.pt2").module()(x), net(x), rtol=1e-3, atol=1e-3)


def test_nothing_is_left_of_what_fails(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if float(x.sum()) > 0 else -x

    for writer, name in ((save_onnx, "net.onnx"), (save_exported, "net.pt2")):
        with pytest.raises(ImportFileError):
            writer(Odd().eval(), (3,), tmp_path / name)
        with pytest.raises(ModuleStateError):
            writer(nn.Sequential(nn.Linear(3, 2)), (3,), tmp_path / name)
    assert list(tmp_path.iterdir()) == []
