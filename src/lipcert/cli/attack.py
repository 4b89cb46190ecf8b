"""``lipcert attack``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from lipcert.attacks import METHODS, Attacked, Judge, Strength
from lipcert.attacks import attack as attack_samples
from lipcert.attacks.target import Target, certificate_in, target_of
from lipcert.certify import Certificate
from lipcert.certify.identity import weights_digest
from lipcert.certify.radius import share
from lipcert.cli.common import (
    DataOption,
    DeviceOption,
    DownloadOption,
    JsonOption,
    command,
    console,
    emit,
    fail,
    find_device,
    guarded,
    parse_epsilon,
    progress_bar,
    run_of,
    say,
    table,
)
from lipcert.data import as_float
from lipcert.errors import CheckpointError, ConfigError, CounterexampleError
from lipcert.shown import percent, radius
from lipcert.train import RunFolder
from lipcert.train.evaluate import radius_key
from lipcert.train.interrupt import stop_on_signal
from lipcert.train.safefile import read_file

__all__ = ["attack"]

COUNTEREXAMPLE = 3  # exit status


def _document(folder: RunFolder, target: Target, found: Attacked, file: Path) -> dict[str, Any]:
    claimed, at = target.radius, {radius_key(e): e for e in found.epsilons}
    certified: dict[str, Any] = {}
    if claimed is not None:
        times = (found.nearest / claimed)[(claimed > 0) & torch.isfinite(found.nearest)]
        certified = {
            "certified_accuracy_at": {k: share(found.correct & (claimed > e)) for k, e in at.items()},
            "distance_over_radius": {
                "least": float(times.min()) if len(times) else None,
                "median": float(times.median()) if len(times) else None,
            },
        }
    samples = {"name": target.samples.name, "split": target.samples.split, "samples": len(target.samples)}
    return {
        "run": str(folder.path),
        "file": str(file),
        "data": {**samples, "of": target.total, "sha256": target.samples.fingerprint},
        "units": "l2, raw input in [0, 1]",
        "arithmetic": found.arithmetic,
        "clean_accuracy": found.clean_accuracy,
        "attacked_accuracy_at": {k: found.accuracy_at(e) for k, e in at.items()},
        **certified,
        "attacks": [vars(t) for t in found.tried()],
        "about": found.about,
    }


def _show(document: dict[str, Any], target: Target, found: Attacked) -> None:
    data, certified = document["data"], document.get("certified_accuracy_at")
    say(f"{data['name']}, {data['split']}: {found.of(data['of'])} samples, {percent(document['clean_accuracy'])} clean")
    shown = table("radius", *(["certified"] if certified else []), "attacked", *(["in between"] if certified else []))
    for key, left in document["attacked_accuracy_at"].items():
        low = [] if certified is None else [percent(certified[key])]
        gap = [] if certified is None else [percent(left - certified[key], up=True)]
        shown.add_row(radius(float(key)), *low, percent(left, up=True), *gap)
    console.print(shown)
    shown = table("attack", "found", "mean distance", "median", "seconds")
    for t in document["attacks"]:
        far = ["", ""] if math.isnan(t["mean"]) else [f"{t['mean']:.4f}", f"{t['median']:.4f}"]
        shown.add_row(METHODS[t["method"]].title, f"{t['found']:,}", *far, f"{t['seconds']:.1f}")
    console.print(shown)
    if certified is None:
        say("There is no certificate to hold this against: `lipcert certify --save` makes one, --certificate names it.")
    else:
        least, median = (document["distance_over_radius"][k] for k in ("least", "median"))
        ratio = "" if least is None else f" The nearest is {least:.4f} times as far (median {median:.3f})."
        say(f"No adversarial example inside of a certified radius.{ratio}")
    arithmetic = {"real": "real arithmetic (looked at in float64)"}.get(target.arithmetic, target.arithmetic)
    say(f"ℓ2, raw input in [0, 1]; predictions in {arithmetic}. All of it is in {document['file']}.")


def _replay(
    run: Path, folder: RunFolder, file: Path, stated: Certificate | None, device: torch.device
) -> dict[str, Any]:
    """Look at a counterexample again.

    Raises:
        CheckpointError: it is no file of a counterexample, or of another run's.
    """
    tensors, texts = read_file(file)
    try:
        about = json.loads(texts["counterexample"])
        x, point = tensors["input"].to(device), tensors["adversarial"].to(device)
        sample, prediction, claimed = int(about["sample"]), int(about["prediction"]), float(about["radius"])
        arithmetic, weights = str(about["arithmetic"]), about["about"]["weights"]
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{file} holds no counterexample of `lipcert attack`: {type(error).__name__}") from error
    module, header = folder.load_model()
    if tuple(x.shape) != tuple(header["input_shape"]) or point.shape != x.shape or weights != weights_digest(module):
        raise CheckpointError(f"{file} is not of this run's model.")
    from_certificate = stated is not None and 0 <= sample < len(stated.samples.radius)
    if stated is not None and from_certificate:
        claimed, arithmetic = stated.samples.radius[sample], stated.precision.arithmetic
    judge = Judge(module.to(device), arithmetic)
    return {
        "run": str(run),
        "file": str(file),
        "sample": sample,
        "arithmetic": arithmetic,
        "prediction": prediction,
        "prediction_of_the_input": int(judge.labels(x[None])),
        "prediction_of_the_other": int(judge.labels(point[None])),
        "distance": float(judge.distance(x[None], point[None])),
        "radius": claimed,
        "radius_is_of": "the run's certificate" if from_certificate else "this file, which anyone may have changed",
        "seen_again": judge.is_counterexample(x, point, prediction, claimed),
    }


def _show_replay(d: dict[str, Any]) -> None:
    say(
        f"sample {d['sample']}, certified as class {d['prediction']}; executed in {d['arithmetic']} it is class "
        f"{d['prediction_of_the_input']}, and the other input, at a distance of {d['distance']:.9g}, class "
        f"{d['prediction_of_the_other']}"
    )
    outcome = "is wrong: it is seen again." if d["seen_again"] else "is not contradicted."
    say(f"The radius {d['radius']:.9g} of {d['radius_is_of']} {outcome}")


def attack(
    run: Annotated[Path, typer.Argument(help="A run's folder, or the name of a model of `lipcert zoo`.")],
    epsilon: Annotated[
        list[str] | None, typer.Option("--epsilon", "-e", help="A radius, such as 0.5 or 36/255; may be repeated.")
    ] = None,
    attacks: Annotated[
        str | None,
        typer.Option(
            "--attacks", help=f"Some of {','.join(METHODS)}, in this order.", show_default="all for so many classes"
        ),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option("--certificate", help="Of this run, to be put to the test.", show_default="RUN/certificate.json"),
    ] = None,
    spare: Annotated[
        bool,
        typer.Option("--spare-certified", help="No PGD and APGD at a radius on samples that are certified there."),
    ] = False,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Of each attack.", show_default="100, of PGD 40")
    ] = None,
    targets: Annotated[int, typer.Option("--targets", min=1, help="Classes that targeted attacks try.")] = 9,
    split: Annotated[str, typer.Option("--split", help="train or test.")] = "test",
    first: Annotated[
        int | None, typer.Option("--first", min=1, help="Only the first samples, so many.", show_default="all")
    ] = None,
    every: Annotated[
        int, typer.Option("--every", min=1, help="Only every k-th of them: folders of images come class by class.")
    ] = 1,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Samples at a time.")] = 200,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Of what is random in attacks.")] = 0,
    save: Annotated[
        Path | None,
        typer.Option("--save", help="What was found; goes on from it.", show_default="RUN/attack.safetensors"),
    ] = None,
    replay: Annotated[
        Path | None, typer.Option("--replay", help="Look at a counterexample again that an attack has written.")
    ] = None,
    data: DataOption = None,
    download: DownloadOption = False,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Attack a trained model: how near adversarial examples are, beside how far a certificate rules them out.

    Ctrl-C saves what there is; the same command goes on from it. Exit status 3: an adversarial example lies inside of
    a certified radius, which is a bug in lipcert. Needs `pip install 'lipcert[attacks]'`.

    For example:

    - `lipcert attack runs/digits`

    - `lipcert attack digits-mlp-crm --save digits-attack.safetensors`, a model of `lipcert zoo`

    - `lipcert attack runs/mnist --certificate mnist.json --first 1000 --data ~/data`

    - `lipcert attack runs/mnist --attacks ddn,pgd -e 0.5 -e 1.58 --data ~/data`
    """
    with guarded("Go on with the same command."):
        folder, where = run_of(run), find_device(device)
        stated = certificate_in(folder, certificate)
        if replay is not None:
            if epsilon or attacks or save or first or every > 1 or spare or steps:
                raise ConfigError(
                    "--replay looks at one file again: it goes with --certificate, and with nothing else."
                )
            seen = _replay(run, folder, replay, stated, where)
    if replay is not None:
        emit(seen) if as_json else _show_replay(seen)
        raise typer.Exit(COUNTEREXAMPLE if seen["seen_again"] else 0)
    with guarded("Go on with the same command."):
        file = _file(run, folder, save)
        target = target_of(folder, stated, split=split, first=first, every=every, root=data, download=download)
        default = [v.epsilon for v in stated.certified] if stated is not None else folder.config().train.eval_epsilons
        epsilons = [parse_epsilon(e) for e in epsilon] if epsilon else [e for e in default if e > 0]
        try:
            with stop_on_signal() as stop, progress_bar() as progress:
                found = attack_samples(
                    target.module.to(where),
                    as_float(target.samples.images).to(where),
                    target.samples.labels.to(where),
                    epsilons=epsilons,
                    methods=None if attacks is None else [a.strip() for a in attacks.split(",") if a.strip()],
                    strength=Strength(steps, targets, seed),
                    radius=target.radius,
                    prediction=target.prediction,
                    spare=spare,
                    arithmetic=target.arithmetic,
                    batch_size=batch_size,
                    file=file,
                    about={
                        "run": str(run),
                        "data": target.samples.name,
                        "split": split,
                        **({"every": every} if every > 1 else {}),
                    },
                    progress=progress,
                    stop=stop,
                )
        except CounterexampleError as error:
            again = (
                ""
                if error.file is None
                else f" See it again: {command('lipcert', 'attack', run, '--replay', error.file)}"
            )
            fail(
                f"{error}{again} Please report it with that file, the run's folder and the certificate.", COUNTEREXAMPLE
            )
        document = _document(folder, target, found, file)
    if as_json:
        emit(document)
    else:
        _show(document, target, found)


def _file(run: Path, folder: RunFolder, save: Path | None) -> Path:
    """Where what was found is kept.

    Raises:
        ConfigError: nowhere, or where a run's own file is.
    """
    if not folder.exists:
        raise CheckpointError(f"there is no run in {folder.path}")
    if save is None:
        if not run.exists():
            raise ConfigError(f"{run} is a model that comes with lipcert: name a file for what is found, with --save.")
        return folder.attack_file
    if save.is_dir() or any(save.resolve() == f.resolve() for f in (*folder.files, folder.certificate_file)):
        raise ConfigError(f"--save {save}: is a folder or a file of the run; give the path of a file to write.")
    return save
