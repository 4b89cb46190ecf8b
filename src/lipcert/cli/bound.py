"""``lipcert bound``."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import nn

from lipcert.bounds import UpperBound, graph_bound
from lipcert.bounds.lipschitz import DENSE_LIMIT, FAILURE, SLACK
from lipcert.bounds.result import rounded
from lipcert.cli.common import DeviceOption, JsonOption, console, describe, emit, find_device, guarded, say, table
from lipcert.cli.options import (
    DenseLimitOption,
    FailureOption,
    GuaranteeName,
    MethodName,
    ScopeName,
    SlackOption,
)
from lipcert.errors import ConfigError
from lipcert.graph import trace
from lipcert.models import build
from lipcert.train import RunFolder
from lipcert.train.checkpoint import load_weights
from lipcert.train.run_folder import MOST_INPUTS

__all__ = ["bound"]


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
        raise ConfigError("give either a run's folder, or --model NAME with --input SHAPE.")
    if run is not None:
        if shape is not None or weights is not None:
            raise ConfigError("--input and --weights go with --model; a run knows its own.")
        module, header = RunFolder(run).load_model()
        return module, tuple(header["input_shape"])
    if shape is None:
        raise ConfigError("--model needs --input, such as --input 3,32,32.")
    assert name is not None
    torch.manual_seed(0)
    module = build(name, input_shape=_shape(shape), num_classes=classes).eval()
    if weights is not None:
        load_weights(weights, module)
    return module, _shape(shape)


def bound(
    run: Annotated[Path | None, typer.Argument(help="A run's folder, as `lipcert train` leaves it.")] = None,
    model: Annotated[str | None, typer.Option("--model", help="A model by name (see `lipcert models`).")] = None,
    shape: Annotated[str | None, typer.Option("--input", help="Its input shape, such as 3,32,32.")] = None,
    classes: Annotated[int, typer.Option("--classes", min=2)] = 10,
    weights: Annotated[Path | None, typer.Option("--weights", help="A safetensors file of its weights.")] = None,
    method: Annotated[
        list[MethodName] | None, typer.Option("--method", help="May be repeated.", show_default="all")
    ] = None,
    scope: Annotated[ScopeName, typer.Option("--scope")] = ScopeName.whole,
    guarantee: Annotated[GuaranteeName, typer.Option("--guarantee")] = GuaranteeName.estimate,
    dense_limit: DenseLimitOption = DENSE_LIMIT,
    failure: FailureOption = FAILURE,
    slack: SlackOption = SLACK,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bound the ℓ2 Lipschitz constant of a network.

    For example:

    - `lipcert bound runs/digits --scope pairwise --guarantee upper`

    - `lipcert bound --model 6c2f --input 3,32,32`
    """
    with guarded():
        where = find_device(device)
        module, input_shape = _model(run, model, shape, classes, weights)
        graph = trace(module.to(where), input_shape)
        results = []
        for choice in method or list(MethodName):
            began = time.monotonic()
            found = graph_bound(
                graph,
                method=choice.value,
                scope=scope.value,
                guarantee=guarantee.value,
                dense_limit=dense_limit,
                failure=failure,
                slack=slack,
            )
            results.append((found, time.monotonic() - began))
    if as_json:
        emit([{**describe(b), "value": b.value.tolist(), "seconds": seconds} for b, seconds in results])
        return
    say(f"ℓ2 Lipschitz constant, {scope.value}")
    columns = ["method", "", "seconds"] + ["slack"] * any(b.guarantee == "upper" for b, _ in results)
    shown = table(*columns)
    for b, seconds in results:
        excess = [f"{rounded(100 * b.slack, 2, up=True)} %"] if isinstance(b, UpperBound) else []
        shown.add_row(b.method, b.shown(), f"{seconds:.2f}", *excess)
    console.print(shown)
    if guarantee is GuaranteeName.estimate:
        console.print(
            "[yellow]Estimates from below, not guarantees.[/yellow] For a proof: --guarantee upper", soft_wrap=True
        )
    else:
        worst = max((b for b, _ in results), key=lambda b: b.failure if isinstance(b, UpperBound) else 0.0)
        say(f"Upper bounds for the network in real arithmetic: {worst.proof()}.")
