"""``lipcert certify``."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from lipcert.bounds import lipschitz
from lipcert.bounds.lipschitz import DENSE_LIMIT
from lipcert.certify.radius import CertifiedRadii, Radii, radii
from lipcert.cli.common import (
    DataOption,
    DeviceOption,
    DownloadOption,
    JsonOption,
    console,
    emit,
    find_device,
    guarded,
    parse_epsilon,
    percent,
    say,
    table,
)
from lipcert.cli.options import GuaranteeName, MethodName, ScopeName
from lipcert.data import Dataset, load
from lipcert.errors import ConfigError, DataError
from lipcert.train import RunFolder
from lipcert.train.evaluate import predict
from lipcert.train.run_folder import write_text
from lipcert.train.summary import versions

__all__ = ["certify", "certify_run"]


def certify_run(
    folder: RunFolder,
    data: Dataset,
    *,
    method: str,
    scope: str,
    guarantee: str,
    dense_limit: int,
    epsilons: list[float],
    device: torch.device,
) -> tuple[dict[str, Any], Radii]:
    """Bound the model of a run and certify its predictions on a data set."""
    model, header = folder.load_model()
    if tuple(header["input_shape"]) != data.input_shape or len(header["classes"]) != data.num_classes:
        raise DataError(
            f"the model takes {tuple(header['input_shape'])} and knows {len(header['classes'])} classes, but "
            f"{data.name} holds {data.input_shape} and {data.num_classes}."
        )
    model = model.to(device)
    began = time.monotonic()
    bound = lipschitz(
        model,
        data.input_shape,
        method=method,  # type: ignore[arg-type]
        scope=scope,  # type: ignore[arg-type]
        guarantee=guarantee,  # type: ignore[arg-type]
        dense_limit=dense_limit,
    )
    seconds = time.monotonic() - began
    logits, labels = predict(model, data, device=device)
    result = radii(logits, bound, labels)
    values = bound.value[bound.value > 0]
    document = {
        "run": str(folder.path),
        "data": {"name": data.name, "split": data.split, "samples": len(data), "sha256": data.fingerprint},
        "units": "l2, raw input in [0, 1]",
        "method": bound.method,
        "scope": bound.scope,
        "guarantee": bound.guarantee,
        "certified": isinstance(result, CertifiedRadii),
        "precision": "real arithmetic",
        "bound": {"low": float(values.min()), "high": float(values.max()), "seconds": seconds},
        "clean_accuracy": result.clean_accuracy,
        "accuracy_at": {f"{e:.6g}": result.robust_accuracy(e) for e in epsilons},
        "mean_radius_of_correct": float(result.radius[result.correct].mean()) if result.correct.any() else 0.0,
        "versions": versions(),
    }
    return document, result


def certify(
    run: Annotated[Path, typer.Argument(help="A run's folder, as `lipcert train` leaves it.")],
    split: Annotated[str, typer.Option("--split", help="train or test.")] = "test",
    epsilon: Annotated[
        list[str] | None, typer.Option("--epsilon", "-e", help="A radius, such as 0.5 or 36/255; may be repeated.")
    ] = None,
    method: Annotated[MethodName, typer.Option("--method")] = MethodName.liplt,
    scope: Annotated[ScopeName, typer.Option("--scope")] = ScopeName.pairwise,
    guarantee: Annotated[
        GuaranteeName, typer.Option("--guarantee", help="upper certifies; estimate does not.")
    ] = GuaranteeName.upper,
    dense_limit: Annotated[
        int, typer.Option("--dense-limit", min=1, help="Largest smaller side of a matrix formed for an upper bound.")
    ] = DENSE_LIMIT,
    save: Annotated[
        Path | None, typer.Option("--save", help="Write radius, prediction and label of each sample.")
    ] = None,
    data: DataOption = None,
    download: DownloadOption = False,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Certify a trained model: clean accuracy, and the share that provably cannot be changed within a radius.

    Radii are ℓ2, in units of the raw input in [0, 1].

    For example:

    - `lipcert certify runs/digits`

    - `lipcert certify runs/cifar -e 36/255 -e 72/255 --guarantee estimate --data ~/data`
    """
    with guarded():
        folder = RunFolder(run)
        config = folder.config()
        epsilons = [parse_epsilon(e) for e in epsilon] if epsilon else list(config.train.eval_epsilons)
        where = find_device(device)
        if save is not None and not save.absolute().parent.is_dir():
            raise ConfigError(f"--save {save}: there is no folder {save.absolute().parent}")
        samples = load(config.data.name, split, root=data, download=download)
        document, result = certify_run(
            folder,
            samples,
            method=method.value,
            scope=scope.value,
            guarantee=guarantee.value,
            dense_limit=dense_limit,
            epsilons=epsilons,
            device=where,
        )
        if save is not None:
            rows = {
                "radius": result.radius.tolist(),
                "prediction": result.prediction.tolist(),
                "label": result.labels.tolist() if result.labels is not None else [],
            }
            write_text(save, json.dumps({**document, "samples": rows}) + "\n")
    if as_json:
        emit(document)
        return
    certain = isinstance(result, CertifiedRadii)
    say(f"{document['data']['name']}, {split}: {len(samples):,} samples")
    shown = table("", "accuracy")
    shown.add_row("clean", percent(document["clean_accuracy"]))
    for radius, share in document["accuracy_at"].items():
        shown.add_row(f"{'certified' if certain else 'estimated'} at {radius}", percent(share))
    console.print(shown)
    low, high = document["bound"]["low"], document["bound"]["high"]
    sign = "≤" if certain else "≈"
    say(f"{method.value}, {scope.value}: L {sign} {low:.4g} … {high:.4g}, {document['bound']['seconds']:.1f} s")
    if certain:
        say("Proved upper bounds, for the network in real arithmetic; ℓ2, raw input in [0, 1].")
    else:
        console.print("[yellow]Not a certificate:[/yellow] the bound is an estimate from below.", soft_wrap=True)
