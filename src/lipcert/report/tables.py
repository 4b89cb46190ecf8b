"""Markdown and CSV: the same numbers as on the page."""

from __future__ import annotations

import csv as writer
import io
import math
import re
from collections.abc import Callable, Sequence

from lipcert.attacks import METHODS, Tried
from lipcert.bounds.result import rounded
from lipcert.report.collect import Entry, epsilons_of
from lipcert.shown import percent, radius

__all__ = ["csv", "guarantee", "markdown", "radius_text"]

_FARTHEST = 1e3
_STEPS = 200  # rows of a CSV file between 0 and the largest radius


def radius_text(epsilon: float) -> str:
    """A radius for people: as so many 255ths too, where it is.

    >>> radius_text(36 / 255), radius_text(0.5), radius_text(1.58)
    ('0.1411 (36/255)', '0.5', '1.58')
    """
    steps = epsilon * 255
    whole = abs(steps - round(steps)) < 1e-6 and round(steps) % 51
    return f"{radius(epsilon, 4)} ({round(steps)}/255)" if whole else radius(epsilon, 4)


def guarantee(entry: Entry) -> list[str]:
    """What is guaranteed and what is not, in plain words."""
    c = entry.certificate
    run = {
        "real": "computed without any rounding",
        "float64": "run in float64 (model.double())",
    }.get(c.precision.arithmetic, f"run in {c.precision.arithmetic}, rounding included")
    said = [
        f"For each of these {c.data.samples:,} inputs the certificate states a radius. Whatever is added to the input, "
        "however it was found, the network's answer stays what it is as long as the change is smaller than the radius "
        "in ℓ2: the root of the sum of its squares over all pixels and channels, where pixels go from 0 to 1.",
        f"This holds for the network {run}.",
        "These are the claims of the certificate, as it stands in its file. A report does not prove them again: "
        "`lipcert verify` does.",
        "It says nothing of other inputs, of changes beyond the radius (a shift, a rotation or another light are large "
        "in ℓ2), nor that the answer is right: an input counts as certified at ε only if it is also answered rightly.",
    ]
    if c.bound.failure:
        said.append(
            f"The bound holds but for a probability of {rounded(c.bound.failure, 1, up=True)}, that a randomised test "
            "of a norm was fooled."
        )
    if entry.attacked is not None:
        said.append(
            "Attacks bound the same accuracy from the other side: what they find is an adversarial example, shown and "
            "measured; that they find none proves nothing. The truth lies between the two curves."
        )
    return said


def markdown(entries: Sequence[Entry]) -> str:
    """The tables and the guarantee of a report as Markdown.

    Args:
        entries: what :func:`lipcert.report.collect` read, one at least.
    """
    lines = ["# lipcert report", ""]
    for e in entries:
        c, a = e.certificate, e.attacked
        of = f"{c.data.name}, {c.data.split}, {c.data.samples:,} samples; model {c.model.name}"
        units = f"ℓ2, raw input in [0, 1], {c.precision.arithmetic} arithmetic"
        lines += [f"## {_plain(e.label)}", "", f"{_plain(of)}; {units}; clean {percent(c.clean.share)}.", ""]
        part = "" if a is None else a.of(len(e.radius)).removeprefix("the ")
        head = [
            "radius",
            "certified",
            *([] if a is None else [f"{w}, {part}" for w in ("certified", "attacked")]),
        ]
        rows = []
        for r in epsilons_of([e]):
            shares = [e.certified_at(r), *([] if a is None else [e.certified_at(r, attacked=True), a.accuracy_at(r)])]
            rows.append([radius_text(r), *(percent(s, up=i == 2) for i, s in enumerate(shares))])
        lines += _table(head, rows)
        if e.bounds:
            lines += _table(
                ["bound on differences of logits", "smallest pair", "largest pair"],
                [[b.title, _bound(b.low, b.proved), _bound(b.high, b.proved)] for b in e.bounds],
            )
        if a is not None:
            lines += _table(
                ["attack", "found", "mean distance", "median", "seconds"],
                [[METHODS[t.method].title, str(t.found), *_lengths(t), f"{t.seconds:.0f}"] for t in a.tried()],
            )
        lines += [
            *(f"{text}\n" for text in guarantee(e)),
            "Assumed:",
            "",
            *(f"- {t}" for t in c.precision.assumptions),
            "",
        ]
        lines += [*(f"> {_plain(note)}\n" for note in e.notes)]
    return "\n".join(lines).rstrip() + "\n"


def _plain(text: str) -> str:
    """Text from a file, in which nothing is markup."""
    return re.sub(r"([\\`*_{}\[\]<>|#~])", r"\\\1", " ".join(text.split()))


def _lengths(t: Tried) -> list[str]:
    return [f"{t.mean:.4f}", f"{t.median:.4f}"] if t.found else ["", ""]


def _bound(value: float, proved: bool) -> str:
    return rounded(value, 5, up=proved)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *(f"| {' | '.join(r)} |" for r in rows), ""]


def csv(entries: Sequence[Entry]) -> str:
    """Clean, certified and attacked accuracy over radii as CSV: shares, one row for a run and a radius.

    Certified shares are rounded down, attacked ones up, in the sixth digit.
    """
    out = io.StringIO()
    rows = writer.writer(out, lineterminator="\n")
    rows.writerow(["run", "radius", "clean", "certified", "samples", "attacked", "attacked_samples"])
    top = max((float(e.radius.clamp_max(_FARTHEST).max()) for e in entries), default=0.0)
    grid = sorted({*(top * i / _STEPS for i in range(_STEPS + 1)), *epsilons_of(entries)})
    for e in entries:
        a = e.attacked
        name = f"'{e.label}" if e.label[:1] in "=+-@\t\r" else e.label  # which a spreadsheet would compute
        for r in grid:
            attacked = ["", ""] if a is None else [_sixth(a.accuracy_at(r), math.ceil), len(a.labels)]
            share, count = e.certificate.clean.share, e.certificate.data.samples
            certified = _sixth(e.certified_at(r), math.floor)
            rows.writerow([name, repr(r), _sixth(share, math.floor), certified, count, *attacked])
    return out.getvalue()


def _sixth(share: float, round_to: Callable[[float], int]) -> str:
    away = -1e-4 if round_to is math.ceil else 1e-4  # what the division has rounded
    return f"{round_to(1e6 * share + away) / 1e6:.6f}"
