"""The command line: one thin file a subcommand."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from lipcert.cli.attack import attack
from lipcert.cli.bound import bound
from lipcert.cli.certify import certify
from lipcert.cli.demo import demo
from lipcert.cli.export import export
from lipcert.cli.fold import fold
from lipcert.cli.lists import configs, datasets, list_models, list_zoo
from lipcert.cli.report import report
from lipcert.cli.train import train
from lipcert.cli.verify import verify
from lipcert.version import __version__

__all__ = ["app", "run"]

app = typer.Typer(
    name="lipcert",
    help="Provably robust neural networks: Lipschitz bounds, certified radii, certified training.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lipcert {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


app.command()(train)
app.command()(certify)
app.command()(verify)
app.command()(attack)
app.command()(report)
app.command()(bound)
app.command()(export)
app.command()(fold)
app.command("models")(list_models)
app.command("zoo")(list_zoo)
app.command()(datasets)
app.command()(configs)
app.command()(demo)


def run() -> None:
    """The entry point of the ``lipcert`` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console or file that cannot hold ℓ or ≤ gets a question mark
            stream.reconfigure(errors="replace")
    app()
