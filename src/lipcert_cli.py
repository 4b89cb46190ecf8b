"""The command ``lipcert``: its subcommands by name, each imported when it is run.

This stands beside the package, not in it, as importing anything of ``lipcert`` imports torch, which takes seconds that
``lipcert --help`` and completion in a shell need not take.
"""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

__all__ = ["COMMANDS", "app", "run"]

_SUMMARIES = """
train    Train a provably robust classifier.
certify  Certify a trained model: clean accuracy, and the share that provably cannot be changed within a radius.
verify   Check a certificate against the model and the data, and say what was checked. Exit status 0: accepted.
attack   Attack a trained model: how near adversarial examples are, beside how far a certificate rules them out.
report   Report on trained models: one page with what is certified, what attacks found, and how to reproduce it.
bound    Bound the ℓ2 Lipschitz constant of a network.
export   Write a trained model for other programs, for batches of any size.
fold     Write the bounds of a trained model's layers into ordinary weights, as a run of its own.
models   List the models that can be built by name, with their options.
zoo      List the trained models that lipcert comes with, and what is certified of them.
datasets List the data sets that can be loaded by name, and where their files are looked for.
configs  List the ready configurations of `lipcert train`.
doctor   Say what lipcert finds on this machine: versions, devices, threads, extras, data sets.
demo     Train on scikit-learn's digits with plain cross-entropy and with CRM, certify all, and draw the curves.
"""
_ELSEWHERE = {"models": "lists:list_models", "zoo": "lists:list_zoo", "datasets": "lists", "configs": "lists"}
COMMANDS: Mapping[str, str] = MappingProxyType(dict(line.split(maxsplit=1) for line in _SUMMARIES.strip().splitlines()))
"""Subcommand → the first line of its help, in the order in which they are used."""


def function_of(name: str) -> Callable[..., None]:
    """The function of a subcommand: that of its name, in the module of its name, in most cases."""
    module, _, function = _ELSEWHERE.get(name, name).partition(":")
    found: Callable[..., None] = getattr(importlib.import_module(f"lipcert.cli.{module}"), function or name)
    return found


class _Deferred(TyperCommand):
    """Stands for a subcommand until it is run or asked for its own options."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the command that it stands for."""
        assert self.name is not None
        own = typer.Typer(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)
        own.command(self.name)(function_of(self.name))
        return get_command(own).make_context(info_name, args, parent=parent, **extra)


class _Group(TyperGroup):
    """All subcommands."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for name, summary in COMMANDS.items():
            self.add_command(_Deferred(name, help=summary))


app = typer.Typer(
    name="lipcert",
    cls=_Group,
    help="Provably robust neural networks: Lipschitz bounds, certified radii, certified training.",
    epilog="Exit status: 0 done, 1 refused, with one message that says why, 2 a wrong command line, 3 an adversarial "
    "example inside of a certified radius, 130 interrupted.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)


def _installed() -> str:
    try:
        return version("lipcert")
    except PackageNotFoundError:  # run from a folder that is not installed
        from lipcert.version import __version__

        return __version__


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lipcert {_installed()}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    pass


def run() -> None:
    """The entry point of the ``lipcert`` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console or file that cannot hold ℓ or ≤ gets a question mark
            stream.reconfigure(errors="replace")
    app()
