"""``lipcert bound``."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

from lipcert.bounds import Bound, LowerBound, UpperBound, graph_bound, lower_bound
from lipcert.bounds.lipschitz import DENSE_LIMIT, FAILURE, SECONDS, SLACK
from lipcert.bounds.result import Scope, rounded
from lipcert.cli.common import (
    DeviceOption,
    JsonOption,
    console,
    describe,
    emit,
    find_device,
    guarded,
    is_onnx,
    run_of,
    say,
    table,
    trained_scaling,
)
from lipcert.cli.options import (
    DenseLimitOption,
    FailureOption,
    GuaranteeName,
    MethodName,
    RefineOption,
    ScalingName,
    ScalingOption,
    ScopeName,
    SecondsOption,
    SlackOption,
    check_refine,
)
from lipcert.errors import ConfigError
from lipcert.exchange import load_onnx, read_state_dict
from lipcert.graph import Graph, trace
from lipcert.models import build
from lipcert.train.checkpoint import load_weights, put_weights
from lipcert.train.run_folder import MOST_INPUTS

__all__ = ["bound"]

_POINTS, _CLIMB = 32, 30


def _shape(text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(n) for n in text.replace("x", ",").split(","))
    except ValueError as error:
        raise ConfigError(f"--input is a shape without the batch, such as 3,32,32; got {text!r}") from error
    if math.prod(shape) > MOST_INPUTS:
        raise ConfigError(f"--input {text}: no model takes inputs of more than {MOST_INPUTS:,} numbers.")
    return shape


def _model(
    run: Path | None, name: str | None, shape: str | None, classes: int, weights: Path | None
) -> tuple[nn.Module, tuple[int, ...]]:
    if (run is None) == (name is None):
        raise ConfigError("give either a run's folder or an ONNX file, or --model NAME with --input SHAPE.")
    if run is not None:
        if shape is not None or weights is not None:
            raise ConfigError("--input and --weights go with --model; a run or an ONNX file knows its own.")
        if is_onnx(run):
            imported = load_onnx(run)
            return imported, imported.input_shape
        module, header = run_of(run).load_model()
        return module, tuple(header["input_shape"])
    if shape is None:
        raise ConfigError("--model needs --input, such as --input 3,32,32.")
    assert name is not None
    torch.manual_seed(0)
    module = build(name, input_shape=_shape(shape), num_classes=classes).eval()
    if weights is not None:
        if weights.suffix == ".safetensors":
            load_weights(weights, module)
        else:
            put_weights(module, read_state_dict(weights), weights)
    return module, _shape(shape)


def _below(graph: Graph, scope: Scope) -> LowerBound:
    """A lower bound over inputs in [0, 1], from a few random points."""
    sample = graph.capture.sample
    generator = torch.Generator().manual_seed(0)
    x = torch.rand((_POINTS, *graph.input_shape), generator=generator).to(sample)
    return lower_bound(graph, x, scope=scope, input_range=(0.0, 1.0), steps=_CLIMB)


def bound(
    run: Annotated[
        Path | None, typer.Argument(help="A run's folder, as `lipcert train` leaves it, or an ONNX file.")
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="A model by name (see `lipcert models`).")] = None,
    shape: Annotated[str | None, typer.Option("--input", help="Its input shape, such as 3,32,32.")] = None,
    classes: Annotated[int, typer.Option("--classes", min=2)] = 10,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", help="A file of its weights: safetensors, or a state_dict of torch.save."),
    ] = None,
    method: Annotated[
        list[MethodName] | None,
        typer.Option("--method", help="May be repeated.", show_default="product and liplt"),
    ] = None,
    scope: Annotated[ScopeName, typer.Option("--scope")] = ScopeName.whole,
    guarantee: Annotated[GuaranteeName, typer.Option("--guarantee")] = GuaranteeName.estimate,
    dense_limit: DenseLimitOption = DENSE_LIMIT,
    failure: FailureOption = FAILURE,
    slack: SlackOption = SLACK,
    scaling: ScalingOption = ScalingName.auto,
    seconds: SecondsOption = SECONDS,
    refine: RefineOption = 0.0,
    compare: Annotated[
        bool, typer.Option("--compare", help="All methods, and a lower bound over random inputs in [0, 1].")
    ] = False,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bound the ℓ2 Lipschitz constant of a network.

    For example:

    - `lipcert bound runs/digits --scope pairwise --guarantee upper`

    - `lipcert bound runs/digits --compare`

    - `lipcert bound runs/digits --method best --seconds 30`

    - `lipcert bound model.onnx --method smallgain`

    - `lipcert bound --model 6c2f --input 3,32,32 --weights weights.pt`
    """
    with guarded():
        where = find_device(device)
        module, input_shape = _model(run, model, shape, classes, weights)
        graph = trace(module.to(where), input_shape)
        if compare and method:
            raise ConfigError("--compare shows all methods: leave out --method.")
        results: list[tuple[Bound, float, dict[str, bool]]] = []
        every = [m for m in MethodName if m is not MethodName.best]
        chosen = every if compare else method or [MethodName.product, MethodName.liplt]
        check_refine(refine, chosen, scope)
        for choice in chosen:
            began = time.monotonic()
            found = graph_bound(
                graph,
                method=choice.value,
                scope=scope.value,
                guarantee=guarantee.value,
                dense_limit=dense_limit,
                failure=failure,
                slack=slack,
                scaling=scaling.value,
                seconds=seconds,
                refine=refine if choice is MethodName.smallgain else 0.0,
                start=None if run is None else trained_scaling(run, graph, choice.value, scaling.value),
            )
            spent = time.monotonic() - began
            tried = [(a.bound, a.seconds, {"best": a.bound.method == found.method}) for a in found.attempts]
            results += tried or [(found, spent, {})]
        began = time.monotonic()
        below = _below(graph, scope.value) if compare else None
        spent = time.monotonic() - began
    if as_json:
        listed = [{**describe(b), "value": b.value.tolist(), "seconds": t, **best} for b, t, best in results]
        if below is not None:
            listed.append({"guarantee": "lower", "value": below.value.tolist(), "seconds": spent})
        emit(listed)
        return
    say(f"ℓ2 Lipschitz constant, {scope.value}")
    columns = ["method", "", "seconds"] + ["slack"] * any(b.guarantee == "upper" for b, *_ in results)
    shown = table(*columns)
    for b, taken, best in results:
        excess = [f"{rounded(100 * b.slack, 2, up=True)} %"] if isinstance(b, UpperBound) else []
        shown.add_row(b.method + " (best)" * any(best.values()), b.shown(), f"{taken:.2f}", *excess)
    if below is not None:
        shown.add_row("points found", below.shown(), f"{spent:.2f}", *([""] if len(columns) > 3 else []))
    console.print(shown)
    if guarantee is GuaranteeName.estimate:
        console.print(
            "[yellow]Estimates from below, not guarantees.[/yellow] For a proof: --guarantee upper", soft_wrap=True
        )
    else:
        worst = max((b for b, *_ in results), key=lambda b: b.failure if isinstance(b, UpperBound) else 0.0)
        say(f"Upper bounds for the network in real arithmetic: {worst.proof()}.")
