"""``lipcert report``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lipcert.cli.common import guarded, run_of, say, shipped
from lipcert.errors import ConfigError
from lipcert.report import Entry, collect, csv, html, markdown
from lipcert.train.run_folder import write_text

__all__ = ["report"]

_KINDS = {".html": html, ".htm": html, ".md": markdown, ".csv": csv}


def _labels(runs: Sequence[Path]) -> list[str | None]:
    """What each is called: as in its configuration, or by its folder where these are the same; a zoo's by its name."""
    names = [str(run) if shipped(run) else run_of(run).config().name for run in runs]
    twice = {name for name, count in Counter(names).items() if count > 1}
    shown = [
        run.name or str(run) if name in twice or shipped(run) else None for run, name in zip(runs, names, strict=True)
    ]
    again = {name for name, count in Counter(filter(None, shown)).items() if count > 1}
    return [str(run) if s in again else s for run, s in zip(runs, shown, strict=True)]


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or names of models of `lipcert zoo`.")],
    out: Annotated[
        list[Path] | None,
        typer.Option("-o", "--out", help="A file: .html, .md or .csv; may be repeated.", show_default="report.html"),
    ] = None,
    certificate: Annotated[
        list[Path] | None,
        typer.Option(
            "--certificate", help="Of each run, in their order.", show_default="certificate.json in its folder"
        ),
    ] = None,
    attack: Annotated[
        list[Path] | None,
        typer.Option(
            "--attack",
            help="What `lipcert attack` left of each run, in their order.",
            show_default="attack.safetensors in its folder",
        ),
    ] = None,
    title: Annotated[str | None, typer.Option("--title", help="Of the page.")] = None,
    bounds: Annotated[
        bool, typer.Option("--bounds/--no-bounds", help="Also bound the network by the other methods.")
    ] = True,
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Where the data sets lie.", envvar="LIPCERT_DATA", show_default="./data"),
    ] = None,
) -> None:
    """Report on trained models: one page with what is certified, what attacks found, and how to reproduce it.

    Several runs are shown beside each other. The page asks nothing of any server.

    For example:

    - `lipcert report runs/mnist --data ~/data -o mnist.html`

    - `lipcert report runs/ce runs/crm -o both.html -o both.md -o both.csv`

    - `lipcert report digits-mlp-crm --attack digits-attack.safetensors`
    """
    with guarded():
        files = out or [Path("report.html")]
        for file in files:
            if file.is_dir():
                raise ConfigError(f"{file} is a folder; give the path of a file to write.")
            if file.suffix.lower() not in _KINDS:
                raise ConfigError(f"{file}: a report ends in {', '.join(_KINDS)}.")
            if not file.parent.is_dir():
                raise ConfigError(f"{file}: there is no folder {file.parent}.")
        for option, given in (("--certificate", certificate), ("--attack", attack)):
            if given is not None and len(given) != len(runs):
                raise ConfigError(f"{option} is given {len(given)} times for {len(runs)} runs.")
        entries: list[Entry] = [
            collect(
                run_of(run),
                label=label,
                certificate=None if certificate is None else certificate[i],
                attack=None if attack is None else attack[i],
                data=data,
                bounds=bounds,
            )
            for i, (run, label) in enumerate(zip(runs, _labels(runs), strict=True))
        ]
        for file in files:
            kind = _KINDS[file.suffix.lower()]
            name = title or ", ".join(e.label for e in entries)
            text = html(entries, title=name) if kind is html else kind(entries)
            write_text(file, text.encode("utf-8", "replace").decode())  # a title from the shell may be no text
            say(f"{file}  ({len(text.encode()) / 1e6:.2f} MB)")
        for entry in entries:
            for note in entry.notes:
                say(f"{entry.label}: {note}")
