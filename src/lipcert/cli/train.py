"""``lipcert train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lipcert.cli.common import (
    DataOption,
    DeviceOption,
    DownloadOption,
    JsonOption,
    command,
    console,
    emit,
    find_device,
    folder_name,
    guarded,
    run_of,
    say,
    shipped,
    table,
)
from lipcert.errors import ConfigError, ParallelError
from lipcert.parallel import joined
from lipcert.shown import percent, radius
from lipcert.train import RunConfig, RunFolder, Trainer, load_config
from lipcert.train.progress import Reporter, SilentReporter
from lipcert.train.tracking import Reporters, TensorBoardReporter, WandbReporter

__all__ = ["train"]

# LipLT, the method by default, certifies far less of what was trained with one of these.
_CERTIFYING = {
    "smallgain": ("--method", "smallgain"),
    "layers": ("--method", "smallgain", "--precision", "real"),  # weights that are computed have no other
}


def _reporters(
    settings: RunConfig, out: Path, *, quiet: bool, tensorboard: bool, wandb: str | None
) -> list[SilentReporter]:
    found: list[SilentReporter] = [] if quiet else [Reporter()]
    if tensorboard:
        found.append(TensorBoardReporter(out / "tensorboard"))
    if wandb is not None:
        found.append(WandbReporter(wandb, name=settings.name, folder=out, settings=settings.to_dict()))
    return found


def train(
    config: Annotated[
        str | None, typer.Argument(help="A ready configuration (see `lipcert configs`) or the path of a TOML file.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(help="Changes to it: section.key=value …")] = None,
    out: Annotated[Path, typer.Option("--out", help="The run's folder.", parser=folder_name, metavar="PATH")] = ...,  # type: ignore[assignment]
    start: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Begin with the weights of a finished run, a model of `lipcert zoo`, or a safetensors file.",
            metavar="RUN",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --out.")] = False,
    data: DataOption = None,
    download: DownloadOption = False,
    device: DeviceOption = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write curves for TensorBoard, into the run's folder.")
    ] = False,
    wandb: Annotated[
        str | None, typer.Option("--wandb", help="Send curves to Weights & Biases.", metavar="PROJECT")
    ] = None,
    cuda_graphs: Annotated[
        bool, typer.Option("--cuda-graphs/--no-cuda-graphs", help="On a GPU: record a step once and replay it.")
    ] = True,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing until the end.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a provably robust classifier.

    Ctrl-C saves the state; --resume goes on exactly where it stopped.

    For example:

    - `lipcert train digits-mlp-crm --out runs/digits`

    - `lipcert train mnist-4c3f-quick train.epochs=5 seed=1 --data ~/data --out runs/mnist`

    - `lipcert train --resume --out runs/mnist --data ~/data`

    - `lipcert train digits-mlp-crm --from digits-mlp-crm train.epochs=20 optimizer.lr=1e-3 --out runs/further`

    - `torchrun --nproc-per-node 2 --no-python -- lipcert train cifar10-6c2f-quick --out runs/cifar`
    """
    where = ["--data", data] if data is not None else []
    go_on = f"Go on with: {command('lipcert', 'train', '--resume', '--out', out, *where)}"
    with guarded(go_on):
        folder = RunFolder(out)
        if resume:
            if start is not None:
                raise ConfigError("--resume goes on with the weights that the run has; --from is for a new one.")
            if config is not None or overrides:
                raise ConfigError(f"--resume takes the configuration from {folder.config_file}; give no other.")
            settings = folder.config()
        elif config is None:
            raise ConfigError("which configuration? Give the name of a ready one (lipcert configs) or a TOML file.")
        else:
            settings = load_config(config, overrides or [])
        with joined(find_device(device)) as (ranks, where_to):
            reporter = SilentReporter()
            if ranks.first:
                reporter = Reporters(_reporters(settings, out, quiet=quiet, tensorboard=tensorboard, wandb=wandb))
            if not resume and ranks.first:
                folder.check_new()
            trainer = Trainer(
                settings,
                out,
                root=data,
                download=download,
                device=where_to,
                reporter=reporter,
                ranks=ranks,
                cuda_graphs=cuda_graphs,
                start=run_of(start) if start is not None and shipped(start) else start,
            )
            try:
                summary = trainer.fit(resume=resume)
            except ParallelError as error:
                raise ParallelError(f"{error} {go_on if folder.checkpoint_file.exists() else ''}".rstrip()) from error
    if not ranks.first:
        return
    if as_json:
        emit(summary)
        return
    say(f"{summary['name']}: {summary['epochs']} epochs")
    shown = table("", summary["split"])
    shown.add_row("clean accuracy", percent(summary["clean_accuracy"]))
    for epsilon, share in summary["estimated_certified_accuracy"].items():
        shown.add_row(f"estimated certified at {radius(float(epsilon))}", percent(share))
    console.print(shown)
    method = summary["bound_estimate"]["method"]
    certify = command("lipcert", "certify", out, *where, *_CERTIFYING.get(method, ()))
    say(f"The bound is an estimate while training. To certify the run: {certify}")
    if method == "layers":
        say("For its execution, rounding included: lipcert fold it, then certify that with --method smallgain.")
