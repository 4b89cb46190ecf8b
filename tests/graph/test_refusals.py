"""Every refusal: one message that names the operation, the place and the way out, and a module left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lipcert
from catalogue import Fn
from lipcert.errors import LipcertError, ModuleStateError, ShapeError, TraceError, UnsupportedError
from refused import REFUSED


@pytest.mark.parametrize("name", list(REFUSED))
def test_refused_with_a_clear_message(name: str) -> None:
    refusal = REFUSED[name]
    module = refusal.build().eval()
    modes = [m.training for m in module.modules()]
    state = {k: v.clone() for k, v in module.state_dict().items() if k != "count"}
    with pytest.raises(LipcertError) as caught:
        lipcert.trace(module, refusal.shape)
    for part in refusal.says:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    assert [m.training for m in module.modules()] == modes
    for key, value in state.items():
        assert torch.equal(module.state_dict()[key], value), f"{key} was changed"


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    """torch dumps the whole program to stderr when it cannot record it."""
    with pytest.raises(TraceError):
        lipcert.trace(REFUSED["branch-on-value"].build().eval(), (4,))
    assert capfd.readouterr() == ("", "")


def test_an_unsupported_operation_says_what_where_and_why() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.first(x))

    net = nn.Sequential(nn.Linear(4, 4), nn.ModuleDict({"b": Block()})["b"]).eval()
    with pytest.raises(UnsupportedError) as caught:
        lipcert.trace(net, (4,))
    error = caught.value
    assert error.operation == "aten.layer_norm.default"
    assert error.place == "1.norm"
    assert "Lipschitz" in error.reason
    assert "BatchNorm" in error.remedy


# --- the module's state -------------------------------------------------------------------------------------------
def test_train_mode_is_refused_and_named() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Dropout(0.5), nn.ReLU())).eval()
    net[1][0].train()
    with pytest.raises(ModuleStateError, match=r"submodule '1\.0' is in train mode.*eval\(\)"):
        lipcert.trace(net, (4,))
    assert [m.training for m in net.modules()] == [False, False, False, True, False]
    with pytest.raises(ModuleStateError, match="the module is in train mode"):
        lipcert.lipschitz(nn.Linear(3, 3), (3,))


def test_the_eval_form_of_a_module_in_train_mode() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.ReLU())
    net[2].eval()
    graph = lipcert.trace(net, (4,), allow_train_mode=True)
    assert [m.training for m in net.modules()] == [True, True, True, False, True]
    assert int(net[1].num_batches_tracked) == 0
    x = torch.rand(3, 4)
    with torch.no_grad():
        torch.testing.assert_close(graph.forward(x)[graph.output], net.eval()(x))


def test_the_mode_survives_a_refusal() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.LayerNorm(4))
    net[0].eval()
    with pytest.raises(UnsupportedError):
        lipcert.trace(net, (4,), allow_train_mode=True)
    assert [m.training for m in net.modules()] == [True, False, True, True]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(bad: float) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    net[0].weight.data[1, 2] = bad
    with pytest.raises(ModuleStateError, match=r"parameter '0\.weight' contains a NaN or an infinity"):
        lipcert.trace(net, (4,))
    net[0].weight.data.zero_()
    net[1].running_var[0] = bad
    with pytest.raises(ModuleStateError, match=r"buffer '1\.running_var'"):
        lipcert.trace(net, (4,))


def test_weights_that_stop_being_finite_after_the_trace() -> None:
    from lipcert.bounds import graph_bound

    net = nn.Linear(4, 4).eval()
    graph = lipcert.trace(net, (4,))
    net.weight.data[0, 0] = float("nan")
    with pytest.raises(ModuleStateError, match="'weight'"):
        graph_bound(graph)


def test_a_negative_variance_is_not_a_network() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).eval()
    net[1].running_var[0] = -1.0
    with pytest.raises(ModuleStateError, match="not finite"):
        lipcert.trace(net, (4,))


# --- the input's shape --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((5,), "does not accept a batch of shape"),
        ((2, 5), "does not accept a batch of shape"),
        ((), "positive integers, without the batch"),
        ((0,), "positive integers"),
        ((-4,), "positive integers"),
        ((4.0,), "positive integers"),
        ((True,), "positive integers"),
        (4, "positive integers"),
        ("4", "positive integers"),
    ],
)
def test_input_shapes(shape: tuple, says: str) -> None:
    with pytest.raises(ShapeError, match=says):
        lipcert.trace(nn.Linear(4, 3).eval(), shape)


def test_modules_without_values() -> None:
    with pytest.raises(ModuleStateError, match="no values yet"):
        lipcert.trace(nn.LazyLinear(3).eval(), (4,))
    with pytest.raises(ModuleStateError, match="no values yet"):
        lipcert.trace(nn.Linear(4, 3, device="meta").eval(), (4,))
    with torch.inference_mode():
        net = nn.Linear(4, 3).eval()
    with pytest.raises(ModuleStateError, match="inference_mode"):
        lipcert.trace(net, (4,))


def test_modules_in_disguise() -> None:
    net = nn.Linear(4, 3).eval()
    with pytest.raises(TraceError, match="_orig_mod"):
        lipcert.trace(torch.compile(net, backend="eager"), (4,))  # type: ignore[arg-type]
    with pytest.raises(TraceError, match="ScriptModule"):
        lipcert.trace(torch.jit.script(net), (4,))
    assert float(lipcert.lipschitz(torch.fx.symbolic_trace(net), (4,))) > 0


def test_not_a_module() -> None:
    with pytest.raises(TraceError, match=r"expected a torch\.nn\.Module, got function"):
        lipcert.trace(lambda x: x, (4,))  # type: ignore[arg-type]


def test_two_inputs() -> None:
    class Two(nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y

    with pytest.raises(ShapeError, match="'y'"):
        lipcert.trace(Two().eval(), (4,))


# --- functions of the weights that depend on their dtype ----------------------------------------------------------
@pytest.mark.parametrize(
    "f",
    [
        lambda s, x: x * (1 - (s.w > 0.1).float()),  # float32(0.1) is above 0.1 in float64 and not in float32
        lambda s, x: x * torch.round(s.w * 5),
    ],
)
def test_a_weight_expression_that_jumps_between_dtypes(f: object) -> None:
    """In float32, in which the module runs, another network than in float64, in which it would be bounded."""
    with pytest.raises(TraceError, match="something else in float64"):
        lipcert.trace(Fn(f, w=torch.full((4,), 0.1)).eval(), (4,))  # type: ignore[arg-type]


def test_numbers_that_cancel_are_not_another_network() -> None:
    """Float32 loses what is left of large numbers that cancel; that is no reason to refuse."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 1)).eval()
    with torch.no_grad():
        net[0].bias += 1e4
        net[2].weight[:] = torch.tensor([1.0, -1.0]).repeat_interleave(32)
    assert float(lipcert.lipschitz(net, (4,))) > 0


def test_a_rounding_that_is_part_of_the_network_is_kept() -> None:
    w = torch.tensor([[1.0, 2.0**-12 + 1.0]])
    net = Fn(lambda s, x: torch.nn.functional.linear(x, s.w.half().float()), w=w).eval()
    bound = lipcert.lipschitz(net, (2,), guarantee="upper")
    assert float(bound) == pytest.approx(2**0.5, abs=1e-12)


def test_a_harmless_counter_is_no_obstacle() -> None:
    def f(s: Fn, x: torch.Tensor) -> torch.Tensor:
        s.count.add_(1)
        return 2 * x

    assert float(lipcert.lipschitz(Fn(f, count=torch.zeros(())).eval(), (3,))) == pytest.approx(2.0)
