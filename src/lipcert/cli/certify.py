"""``lipcert certify``."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from lipcert.bounds import graph_bound
from lipcert.bounds.lipschitz import DENSE_LIMIT, FAILURE, SECONDS, SLACK
from lipcert.bounds.refine import nearest_pairs
from lipcert.bounds.result import Bound, UpperBound
from lipcert.certify import Origin, Samples, make_certificate, write_certificate
from lipcert.certify.certificate import assumptions_of, restated, stated
from lipcert.certify.identity import describe_graph, versions, weights_digest
from lipcert.certify.local import Local
from lipcert.certify.network import executes
from lipcert.certify.radius import CertifiedRadii, Radii, radii
from lipcert.cli.common import (
    DataOption,
    DeviceOption,
    DownloadOption,
    JsonOption,
    console,
    describe,
    emit,
    find_device,
    guarded,
    is_onnx,
    parse_epsilon,
    progress_bar,
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
    PrecisionName,
    RefineOption,
    ScalingName,
    ScalingOption,
    ScopeName,
    SecondsOption,
    SlackOption,
    check_refine,
)
from lipcert.data import Dataset, load
from lipcert.errors import BoundError, ConfigError, DataError
from lipcert.exchange import load_onnx
from lipcert.graph import Graph, trace
from lipcert.parallel import ALONE, Ranks, joined
from lipcert.shown import percent, radius
from lipcert.train import RunFolder
from lipcert.train.evaluate import certify_data, predict, radius_key
from lipcert.train.run_folder import model_for, write_text

__all__ = ["certify", "certify_run", "origin_of"]


def _imported(file: Path, data: Dataset) -> nn.Module:
    """The model in an ONNX file, which must be one for this data."""
    model = load_onnx(file)
    if model.input_shape != data.input_shape:
        raise DataError(f"the model takes {model.input_shape}, but {data.name} holds {data.input_shape}.")
    return model


def certify_run(
    source: RunFolder | Path,
    data: Dataset,
    *,
    of: int | None = None,
    bounding: Mapping[str, Any],
    epsilons: list[float],
    device: torch.device,
    precision: str | None = None,
    local: Local = False,
    ranks: Ranks = ALONE,
) -> tuple[dict[str, Any], Radii, Graph]:
    """Bound a model and certify its predictions on a data set.

    Of several processes the first proves an upper bound, and all share the samples.

    Args:
        source: a run, or an ONNX file.
        of: how many samples there are of which ``data`` are the first, if there are more.
        bounding: keyword arguments of :func:`lipcert.lipschitz`.
        precision, local: as in :func:`lipcert.certify`; with ``"float64"`` a model in float32 is converted first, which
            changes none of its numbers.
    """
    model = model_for(source, data) if isinstance(source, RunFolder) else _imported(source, data)
    model = model.to(device)
    pairs = nearest_pairs(predict(model, data, device=device, ranks=ranks)[0]) if bounding.get("refine") else []
    if precision == "float64":
        model = model.double()
    began = time.monotonic()
    graph = trace(model, data.input_shape)
    if graph.output_shape != (data.num_classes,):
        raise DataError(f"the model has outputs of shape {graph.output_shape}, {data.name} {data.num_classes} classes.")
    asked = json.dumps([dict(bounding), epsilons, precision, local], default=str)
    same = [weights_digest(model), describe_graph(graph)[1], data.fingerprint, asked]
    ranks.check_same("model, data and options", "\n".join(same), device)
    upper = bounding["guarantee"] == "upper"
    begin = {
        "parts": upper and executes(graph, precision),
        "start": trained_scaling(source, graph, bounding["method"], bounding["scaling"]),
        "pairs": pairs,
    }
    bound = _bounded(graph, {**bounding, **begin}, ranks, device)
    seconds = time.monotonic() - began
    result: Radii
    if isinstance(bound, UpperBound):
        own = ranks.part(len(data))
        with progress_bar(show=bool(local) and ranks.first) as bar:
            result = certify_data(
                graph,
                bound,
                data,
                device=device,
                precision=precision,
                local=local,
                progress=lambda done: bar(done / (own.stop - own.start), "local radii"),
                ranks=ranks,
            )
    elif precision not in (None, "real"):
        raise BoundError(f"--precision {precision} is for upper bounds: an estimate certifies nothing.")
    else:
        logits, labels = predict(model, data, device=device, ranks=ranks)
        result = radii(logits, bound, labels)
    low, high = bound.ends()
    document = {
        "run": str(source.path if isinstance(source, RunFolder) else source),
        "data": {
            "name": data.name,
            "split": data.split,
            "samples": len(data),
            "of": of or len(data),
            "sha256": data.fingerprint,
        },
        "units": "l2, raw input in [0, 1]",
        **describe(bound),
        "certified": isinstance(result, CertifiedRadii),
        "precision": result.precision,
        "local": result.alone is not None,
        **({} if isinstance(local, bool) else {"local_at": list(local)}),
        "assumptions": list(assumptions_of(result.precision)) if isinstance(result, CertifiedRadii) else [],
        "bound": {"low": low, "high": high, "seconds": seconds},
        "clean_accuracy": result.clean_accuracy,
        "accuracy_at": {radius_key(e): result.robust_accuracy(e) for e in epsilons},
        "real_accuracy_at": {radius_key(e): result.real_accuracy(e) for e in epsilons},
        **_without_local(result, epsilons),
        "mean_radius_of_correct": float(result.radius[result.correct].mean()) if result.correct.any() else 0.0,
        "versions": versions(),
    }
    return document, result, graph


def _bounded(graph: Graph, bounding: Mapping[str, Any], ranks: Ranks, device: torch.device) -> Bound:
    """A bound, which the first of several processes proves for all; an estimate each makes for itself."""
    if ranks.first:
        found = graph_bound(graph, **bounding)
        if ranks.size == 1:
            return found
        if isinstance(found, UpperBound):
            text = stated(found)
            ranks.say(text, device)
            # in the last bit it is what the others make of it, as a certificate has radii of all
            return replace(restated(graph, text), attempts=found.attempts, failure=found.failure)
        return found
    if bounding["guarantee"] == "upper":
        return restated(graph, ranks.say(None, device))
    return graph_bound(graph, **bounding)


def _without_local(result: Radii, epsilons: list[float]) -> dict[str, Any]:
    """What the global bound alone certifies, where local bounds were added."""
    if result.alone is None:
        return {}
    return {"global_accuracy_at": {radius_key(e): result.alone.robust_accuracy(e) for e in epsilons}}


def _data_of(run: Path, dataset: str | None) -> tuple[str, list[float]]:
    """The data set to certify on, and the radii if none are given."""
    if is_onnx(run):
        if dataset is None:
            raise ConfigError("an ONNX file does not say what data it is for: give --dataset NAME.")
        return dataset, []
    if dataset is not None:
        raise ConfigError("--dataset goes with an ONNX file; a run knows its data.")
    config = run_of(run).config()
    return config.data.name, list(config.train.eval_epsilons)


def _target(save: Path, folder: RunFolder | None) -> Path:
    """The file that ``--save`` names, links followed.

    Raises:
        ConfigError: it cannot be written, or must not be.
    """
    if folder is None:
        raise ConfigError(
            "--save goes with a run's folder: `lipcert verify` builds the model that a certificate is of."
        )
    target = Path(os.path.realpath(save))
    if save.is_dir():
        reason = "is a folder"
    elif save.exists() and not save.is_file():
        reason = "is not an ordinary file"
    elif save.exists() and os.path.samestat(save.stat(), os.fstat(1)):
        reason = "is where the results are printed"
    elif not target.parent.is_dir():
        reason = f"there is no folder {target.parent}"
    elif any(os.path.realpath(file) == str(target) for file in folder.files):
        reason = f"is a file of the run in {folder.path}"
    else:
        return target
    raise ConfigError(f"--save {save}: {reason}; give the path of a file to write.")


def _check_local(local: bool, local_at: bool, guarantee: GuaranteeName) -> None:
    if local and local_at:
        raise ConfigError("--local looks for the largest radii, --local-at tries those of -e only: give one of them.")
    if (local or local_at) and guarantee is not GuaranteeName.upper:
        name = "--local" if local else "--local-at"
        raise ConfigError(f"{name} is for upper bounds: an estimate certifies nothing. Use --guarantee upper.")


def origin_of(folder: RunFolder, input_shape: tuple[int, ...], classes: tuple[str, ...]) -> Origin:
    """How the model of a run was built."""
    model = folder.config().model.model_dump(mode="json")
    return Origin(model["name"], model["options"], input_shape, classes)


def _save(target: Path, document: Mapping[str, Any], result: Radii) -> None:
    """Write an estimate, with radius, prediction and label of each sample, as what it is."""
    samples = {
        "radius": result.radius.tolist(),
        "prediction": result.prediction.tolist(),
        "label": result.labels.tolist() if result.labels is not None else [],
    }
    about = {"format": "lipcert-estimate", "note": "an estimate, not a certificate: nothing here is proved"}
    write_text(target, json.dumps({**about, **document, "samples": samples}) + "\n")


def _show(document: Mapping[str, Any], result: Radii) -> None:
    """Print the outcome for people, and whether it is a certificate."""
    certain, data = isinstance(result, CertifiedRadii), document["data"]
    part = f"the first {data['samples']:,} of {data['of']:,}" if data["samples"] < data["of"] else f"{data['of']:,}"
    say(f"{data['name']}, {data['split']}: {part} samples")
    executed = result.precision != "real"
    local = document.get("global_accuracy_at", {})
    columns = [*(["by the global bound"] if local else []), *(["in real arithmetic"] if executed and not local else [])]
    shown = table("", "accuracy", *columns)
    shown.add_row("clean", percent(document["clean_accuracy"]))
    for key, share in document["accuracy_at"].items():
        at = radius(float(key))
        beside = local if local else document["real_accuracy_at"]
        more = [percent(beside[key])] if columns else []
        shown.add_row(f"{'certified' if certain else 'estimated'} at {at}", percent(share), *more)
    console.print(shown)
    bound = result.bound
    say(f"{bound.method}, {bound.scope}: {bound.shown(5)}, {document['bound']['seconds']:.1f} s")
    if bound.attempts:
        tried = [f"{a.bound.method} ({a.seconds:.1f} s)" for a in bound.attempts]
        say(f"The best of {', '.join(tried)}." if len(tried) > 1 else f"There was time for {tried[0]} only.")
    if local:
        where = " at these radii only" if "local_at" in document else ""
        say(f"Local bounds were added sample by sample{where}; no radius is smaller for it.")
    if certain:
        network = f"as {result.precision} executes it" if executed else "in real arithmetic"
        network += " (model.double())" if result.precision == "float64" else ""
        say(f"Upper bounds, {bound.proof()}, for the network {network}; ℓ2, raw input in [0, 1].")
    else:
        console.print("[yellow]Not a certificate:[/yellow] the bound is an estimate from below.", soft_wrap=True)


def certify(
    run: Annotated[Path, typer.Argument(help="A run's folder, as `lipcert train` leaves it, or an ONNX file.")],
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Where it is an ONNX file: the data set (see `lipcert datasets`).")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train or test.")] = "test",
    epsilon: Annotated[
        list[str] | None, typer.Option("--epsilon", "-e", help="A radius, such as 0.5 or 36/255; may be repeated.")
    ] = None,
    method: Annotated[MethodName, typer.Option("--method")] = MethodName.liplt,
    scope: Annotated[ScopeName, typer.Option("--scope")] = ScopeName.pairwise,
    guarantee: Annotated[
        GuaranteeName, typer.Option("--guarantee", help="upper certifies; estimate does not.")
    ] = GuaranteeName.upper,
    precision: Annotated[
        PrecisionName | None,
        typer.Option(
            "--precision",
            help="The arithmetic for which radii hold: that of the execution, or real. With float64 the model is "
            "converted to it, and is to be executed so.",
            show_default="that in which the model runs",
        ),
    ] = None,
    dense_limit: DenseLimitOption = DENSE_LIMIT,
    failure: FailureOption = FAILURE,
    slack: SlackOption = SLACK,
    scaling: ScalingOption = ScalingName.auto,
    seconds: SecondsOption = SECONDS,
    refine: RefineOption = 0.0,
    local: Annotated[
        bool, typer.Option("--local", help="Add bounds that hold around each sample only: larger radii, more time.")
    ] = False,
    local_at: Annotated[
        bool, typer.Option("--local-at", help="The same at the radii of -e only, in a fraction of the time.")
    ] = False,
    first: Annotated[
        int | None, typer.Option("--first", min=1, help="Only the first samples, so many.", show_default="all")
    ] = None,
    save: Annotated[Path | None, typer.Option("--save", help="Write the certificate, for `lipcert verify`.")] = None,
    data: DataOption = None,
    download: DownloadOption = False,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Certify a trained model: clean accuracy, and the share that provably cannot be changed within a radius.

    Radii are ℓ2, in units of the raw input in [0, 1].

    For example:

    - `lipcert certify runs/digits`

    - `lipcert certify digits-mlp-crm`, a model of `lipcert zoo`

    - `lipcert certify runs/digits --method smallgain --save digits.json`

    - `lipcert certify runs/digits --method smallgain --refine 300`, for the last per cents

    - `lipcert certify runs/deep --method smallgain --precision float64`, where float32 rounds too much

    - `lipcert certify runs/digits --local --first 100`

    - `lipcert certify runs/cifar --method smallgain --local-at -e 36/255 --data ~/data`

    - `lipcert certify runs/cifar -e 36/255 -e 72/255 --guarantee estimate --data ~/data`

    - `lipcert certify model.onnx --dataset mnist -e 0.5 --data ~/data`

    - `torchrun --nproc-per-node 2 --no-python -- lipcert certify runs/cifar --local --save cifar.json`
    """
    with guarded():
        _check_local(local, local_at, guarantee)
        check_refine(refine, [method], scope)
        name, default = _data_of(run, dataset)
        epsilons = [parse_epsilon(e) for e in epsilon] if epsilon else default
        if local_at and not any(epsilons):
            raise ConfigError("--local-at tries the radii of -e: give some, such as -e 36/255.")
        folder = None if is_onnx(run) else run_of(run)
        target = None if save is None else _target(save, folder)
        bounding = {
            "method": method.value,
            "scope": scope.value,
            "guarantee": guarantee.value,
            "dense_limit": dense_limit,
            "failure": failure,
            "slack": slack,
            "scaling": scaling.value,
            "seconds": seconds,
            "refine": refine,
        }
        with joined(find_device(device)) as (ranks, where):
            with ranks.first_alone(where):
                samples = load(name, split, root=data, download=download)
            total = len(samples)
            if first is not None:
                samples = samples.subset(slice(first))
            if len(samples) < ranks.size:
                raise ConfigError(f"{len(samples)} samples are too few for {ranks.size} processes: start fewer.")
            document, result, graph = certify_run(
                folder or run,
                samples,
                of=total,
                bounding=bounding,
                epsilons=epsilons,
                device=where,
                precision=None if precision is None else precision.value,
                local=[e for e in epsilons if e] if local_at else local,
                ranks=ranks,
            )
    if not ranks.first:
        return
    try:
        if as_json:
            emit(document)
        else:
            _show(document, result)
    finally:  # even if nobody reads on; and after the results, which a full disk must not cost
        if target is not None:
            with guarded():
                if isinstance(result, CertifiedRadii):
                    assert folder is not None
                    origin = origin_of(folder, samples.input_shape, samples.classes)
                    given = Samples.from_dataset(samples)
                    made = make_certificate(graph, result, given, epsilons=epsilons, origin=origin)
                    write_certificate(target, made)
                else:
                    _save(target, document, result)
