"""Stopping a run when asked to, between two steps."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Interrupted", "stop_on_signal"]


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop, and its state is saved."""


@contextmanager
def stop_on_signal(*, launched: bool = False) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C or SIGTERM lets the step in flight finish; the second ends at once.

    Where processes were ``launched`` by another one, further ones change nothing: the launcher passes on what the
    terminal has sent to all of them already, and in the end it kills them.
    """
    asked = False
    handled = (signal.SIGINT, signal.SIGTERM)

    def ask(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked and not launched:
            raise KeyboardInterrupt
        asked = True

    try:
        before = {s: signal.signal(s, ask) for s in handled}
    except ValueError:  # not in the main thread: nobody sends us signals there
        before = {}
    try:
        yield lambda: asked
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
