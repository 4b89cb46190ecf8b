"""What a person sees while a network trains: a progress bar, and one line an epoch that stays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Reporter", "SilentReporter"]


class SilentReporter:
    """Says nothing; the base of those that do."""

    def start(self, title: str, epochs: int, done: int, batches: int) -> None:
        """A run of ``epochs`` begins, ``done`` of them are done already."""

    def step(
        self, epoch: int, batch: int, loss: float, accuracy: float, *, certified: float | None, bound: float | None
    ) -> None:
        """A batch is done; called a few times a second at most. ``certified`` and ``bound`` are estimates."""

    def epoch(self, record: Mapping[str, Any]) -> None:
        """An epoch is done and evaluated."""

    def message(self, text: str) -> None:
        """Something worth knowing."""

    def stop(self, finished: bool = True) -> None:
        """The run ends, however; ``finished`` says whether it came to its end."""


class Reporter(SilentReporter):
    """A bar on a terminal; elsewhere (a log, CI) only the line an epoch."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._batches = 1

    def start(self, title: str, epochs: int, done: int, batches: int) -> None:  # noqa: D102
        self.console.print(f"[bold]{escape(title)}[/bold]", highlight=False, soft_wrap=True)
        self._batches = batches
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
                BarColumn(bar_width=10),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self._bar.add_task("", total=epochs * batches, completed=done * batches, epoch=done, epochs=epochs, note="")
            self._bar.start()

    def step(  # noqa: D102
        self, epoch: int, batch: int, loss: float, accuracy: float, *, certified: float | None, bound: float | None
    ) -> None:
        if self._bar is not None:
            note = f"loss {loss:.3f}  train {accuracy:.1%}"  # all of the bar has to fit into 80 columns
            note += "" if certified is None else f"  est. cert. {certified:.1%}"
            note += "" if bound is None else f"  L≈{bound:.3g}"
            done = (epoch - 1) * self._batches + batch
            self._bar.update(self._bar.task_ids[0], completed=done, epoch=epoch, note=note)

    def epoch(self, record: Mapping[str, Any]) -> None:  # noqa: D102
        shares = "  ".join(f"@{float(e):.4g} {v:6.2%}" for e, v in record["estimated_certified"].items())
        low, high = record["bound"]
        self.console.print(
            f"epoch {record['epoch']:>4}  loss {record['loss']:8.4f}  train {record['train_accuracy']:6.2%}  "
            f"{record['split']} {record['clean']:6.2%}  est. certified {shares}  L {low:.3g}…{high:.3g}  "
            f"{record['seconds']:.1f} s",
            highlight=False,
            markup=False,
            soft_wrap=True,  # one line an epoch, also in a file
        )

    def message(self, text: str) -> None:  # noqa: D102
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def stop(self, finished: bool = True) -> None:  # noqa: D102
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
