"""``python -m lipcert``: the same as the command ``lipcert``."""

from __future__ import annotations

from lipcert.cli.main import run

if __name__ == "__main__":
    run()
