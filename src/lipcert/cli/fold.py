"""``lipcert fold``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipcert.cli.common import guarded, run_of, say
from lipcert.errors import ConfigError
from lipcert.layers import blocked
from lipcert.layers import fold as folded
from lipcert.layers.blocked import BLOCKED
from lipcert.layers.fold import FOLDABLE
from lipcert.train import RunFolder
from lipcert.train.schema import ModelConfig

__all__ = ["fold"]


def fold(
    run: Annotated[Path, typer.Argument(help="A run's folder, as `lipcert train` leaves it.")],
    out: Annotated[Path, typer.Argument(help="The folder for the folded run; a new one.")],
    terms: Annotated[
        int | None,
        typer.Option(min=1, help="Also add up at most so many products at a time, such as 128: float32 loses less."),
    ] = None,
) -> None:
    """Write the bounds of a trained model's layers into ordinary weights, as a run of its own.

    For models of layers with a Lipschitz bound of their own (lipres-s …). The folded run computes the same, faster,
    and is certified and verified as float32 executes it.

    With --terms, for any model: layers that add up more products than that are made of smaller ones with the same
    weights (blocked summation), and others of up to four. That is the same function, somewhat slower, and what the
    rounding of float32 takes off its certified radii is several times less.

    For example:

    - `lipcert fold runs/lipres runs/lipres-folded`
    - `lipcert fold runs/mnist runs/mnist-blocked --terms 128`
    """
    with guarded():
        source, target = run_of(run), RunFolder(out)
        model, header = source.load_model()
        config = source.config()
        own = any(isinstance(m, FOLDABLE) for m in model.modules())
        options = dict(config.model.options)
        if terms is not None:
            if options.get("terms") == terms:
                raise ConfigError(f"the model in {run} adds up at most {terms} products at a time already.")
            options["terms"] = terms
        elif options.get("folded"):
            raise ConfigError(f"the model in {run} is folded already.")
        if own:
            options["folded"] = True
        changed = config.model_copy(update={"model": ModelConfig(**{**config.model.model_dump(), "options": options})})
        if out.suffix.lower() == ".onnx":
            raise ConfigError(f"{out}: a folder, please; lipcert export writes ONNX files.")
        if out.resolve().is_relative_to(run.resolve()):
            raise ConfigError(f"{out} is in the run that is to be folded: name a folder outside of {run}.")
        target.check_new(trains=False)
        if not own and terms is None:
            raise ConfigError(f"the model in {run} has no layers with a bound of their own: there is nothing to fold.")
        plain = folded(model) if own else model
        if terms is not None:
            plain = blocked(plain, terms=terms)
            if not any(isinstance(m, BLOCKED) for m in plain.modules()):
                raise ConfigError(f"no layer of the model in {run} can be divided into shorter sums.")
        scaling = None if own else source.scaling()  # of the same network; of layers of another form none is known
        target.create(changed)
        target.save_model(plain, changed, tuple(header["input_shape"]), tuple(header["classes"]))
        if scaling is not None:
            target.save_scaling(scaling, changed)
    made = "of ordinary layers" if terms is None else f"adding up at most {terms} products at a time"
    say(f"{out}: the same model, {made}. Certify it: lipcert certify {out}")
