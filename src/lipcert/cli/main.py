"""The command line: one thin file a subcommand; :mod:`lipcert_cli` says which there are."""

from __future__ import annotations

from lipcert_cli import app, run

__all__ = ["app", "run"]
