"""The HTML page: figures and images inside of it, no request to anywhere."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import torch
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from lipcert.attacks import METHODS
from lipcert.bounds.result import rounded
from lipcert.report.collect import Entry, epsilons_of
from lipcert.report.svg import Plot
from lipcert.report.tables import guarantee, radius_text
from lipcert.shown import percent
from lipcert.version import __version__

__all__ = ["html"]

_GRID = 220  # points of a curve
_BINS = 48
_FEW = 20  # classes up to which each has its row
_SHOWN = 8  # images of each kind
_FAR = 1e3  # times the largest radius of interest, beyond which there is nothing to see
_BESIDE = 0.06  # of the largest radius, room to the right


def html(entries: Sequence[Entry], *, title: str = "lipcert report") -> str:
    """A report of some runs as one HTML document.

    Args:
        entries: what :func:`lipcert.report.collect` read, one at least.
        title: of the page.
    """
    top = _top(entries)
    here = epsilons_of(entries)
    page = _ENVIRONMENT.from_string(_part("page.html.jinja"))
    return page.render(
        title=title,
        version=__version__,
        style=Markup(_part("page.css")),
        script=Markup(_part("page.js")),
        entries=[_view(e, i, top) for i, e in enumerate(entries)],
        several=len(entries) > 1,
        epsilons=[(e, radius_text(e)) for e in here],
        rows=[_headline(entries, e) for e in here],
        curves=Markup(_curves(entries, top)),
        slider={"top": top, "step": top / 600, "at": here[0] if here else top / 4},
        data=Markup(_json({"runs": [_samples(e) for e in entries]})),
        any_attacked=any(e.attacked is not None for e in entries),
        parts=_parts(entries),
    )


def _parts(entries: Sequence[Entry]) -> list[str]:
    """Of which samples the attacks are, where they are not of all."""
    said = []
    for e in entries:
        if e.attacked is not None and len(e.attacked.labels) < len(e.radius):
            which = f"of {e.attacked.of(len(e.radius))} samples"
            said.append(f"{e.label}: {which}" if len(entries) > 1 else which)
    return said


def _part(name: str) -> str:
    return (files("lipcert.report") / name).read_text(encoding="utf-8")


_ENVIRONMENT = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
_ENVIRONMENT.filters["percent"] = percent
_ENVIRONMENT.filters["percent_up"] = lambda share: percent(share, up=True)


def _json(value: Any) -> str:
    """JSON that cannot end the element that it stands in."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _top(entries: Sequence[Entry]) -> float:
    """The largest radius on the axes."""
    largest = 0.0
    for e in entries:
        largest = max(largest, float(e.radius[e.correct].max()) if bool(e.correct.any()) else 0.0)
        if e.attacked is not None:
            seen = e.attacked.distance[torch.isfinite(e.attacked.distance)]
            largest = max(largest, float(seen.quantile(0.98)) if len(seen) else 0.0)
    asked = max(epsilons_of(entries), default=0.0)
    if largest > _FAR * (asked or 1.0):  # a network that always answers the same has radii without end
        largest = 4 * (asked or 1.0)
    return (max(largest, asked) or 1.0) * (1 + _BESIDE)  # the slider reaches all radii of interest


def _headline(entries: Sequence[Entry], epsilon: float) -> dict[str, Any]:
    cells = []
    for e in entries:
        attacked = None if e.attacked is None else e.attacked.accuracy_at(epsilon)
        cells.append(
            {"certified": e.certified_at(epsilon), "attacked": attacked, "part": e.certified_at(epsilon, attacked=True)}
        )
    return {"epsilon": radius_text(epsilon), "cells": cells}


def _curve(values: Tensor, total: int, top: float) -> list[tuple[float, float]]:
    """The share in percent of ``total`` samples whose value is above each radius."""
    grid = torch.linspace(0, top, _GRID, dtype=torch.float64)
    shares = 100 * (values[None] > grid[:, None]).sum(1).double() / total
    return list(zip(grid.tolist(), shares.tolist(), strict=True))


def _curves(entries: Sequence[Entry], top: float) -> str:
    plot = Plot(top, 100.0, "ℓ2 radius, pixels in [0, 1]", "share of the samples")
    for i, e in enumerate(entries):
        if e.attacked is not None:
            count = len(e.attacked.labels)
            distance = torch.where(e.attacked.correct, e.attacked.distance, -torch.ones(()))
            above = _curve(distance, count, top)
            below = _curve(torch.where(e.correct, e.radius, -torch.ones(()))[e.part], count, top)
            plot.between(below, above, f"c{i % 6}")
            plot.line(above, f"c{i % 6} dashed")
    for i, e in enumerate(entries):
        plot.line(_curve(torch.where(e.correct, e.radius, -torch.ones(())), len(e.radius), top), f"c{i % 6}")
    plot.marker()
    return plot.text("certified and attacked accuracy over the radius", percent=True)


def _samples(e: Entry) -> dict[str, Any]:
    """What the slider needs of each sample; radii rounded down."""
    attacked = None
    if e.attacked is not None:
        near = [None if math.isinf(d) else float(rounded(d, 6, up=True)) for d in e.attacked.distance.tolist()]
        attacked = {"distance": near}
    return {
        "radius": [min(1e9, float(rounded(min(r, 1e12), 6, up=False))) for r in e.radius.tolist()],
        "label": e.labels.tolist(),
        "prediction": e.prediction.tolist(),
        "runner": e.runner_up.tolist(),
        "classes": list(e.classes),
        "attacked": attacked,
    }


# --- one run ----------------------------------------------------------------------------------------------------------
def _view(e: Entry, number: int, top: float) -> dict[str, Any]:
    c, summary = e.certificate, e.summary or {}
    facts = {
        "model": c.model.name or "a module",
        "data": f"{c.data.name}, {c.data.split}, {c.data.samples:,} samples of {'×'.join(map(str, c.input.shape))}",
        "arithmetic": c.precision.arithmetic,
        "bound": f"{c.bound.method}, {c.bound.scope}",
        "certified on": c.created[:10],
    }
    if isinstance(summary.get("parameters"), int):
        facts["parameters"] = f"{summary['parameters']:,}"
    if isinstance(summary.get("training_seconds"), (int, float)):
        spent, on = float(summary["training_seconds"]), summary.get("device", "cpu")
        took = f"{spent:.0f} s" if spent < 120 else f"{spent / 60:.0f} min"
        facts["training"] = f"{summary['epochs']} epochs, {took} on {on}"
    return {
        "number": number,
        "label": e.label,
        "facts": facts,
        "clean": c.clean.share,
        "count": c.data.samples,
        "attacked_count": None if e.attacked is None else len(e.attacked.labels),
        "attacked_clean": None if e.attacked is None else e.attacked.clean_accuracy,
        "histograms": [_histogram(e, k, top) for k in _shown_classes(e)],
        "all_classes": len(e.classes) <= _FEW,
        "bounds": _bounds(e),
        "attacks": _attacks(e),
        "training": [Markup(p) for p in _training(e)],
        "training_keys": _training_keys(e),
        "gallery": _gallery(e),
        "guarantee": guarantee(e),
        "assumptions": list(c.precision.assumptions),
        "commands": _commands(e),
        "toml": e.toml,
        "hashes": {"weights": c.model.weights_sha256, "samples": c.data.sha256, "graph": c.model.graph.sha256},
        "versions": ", ".join(f"{k} {v}" for k, v in c.versions),
        "notes": e.notes,
    }


def _bounds(e: Entry) -> list[dict[str, Any]]:
    largest = max((b.high for b in e.bounds), default=0.0) or 1.0
    return [
        {
            "title": b.title,
            "proved": b.proved,
            "low": rounded(b.low, 4, up=b.proved),
            "high": rounded(b.high, 4, up=b.proved),
            "share": b.high / largest,
        }
        for b in e.bounds
    ]


def _attacks(e: Entry) -> list[dict[str, Any]]:
    return [] if e.attacked is None else [{**vars(t), "title": METHODS[t.method].title} for t in e.attacked.tried()]


def _shown_classes(e: Entry) -> list[int]:
    """All classes, or of many those with the largest and the smallest mean radii."""
    count = len(e.classes)
    if count <= _FEW:
        return list(range(count))
    there = [k for k in range(count) if bool((e.labels == k).any())]
    means = [float(torch.where(e.correct, e.radius, 0.0)[e.labels == k].mean().nan_to_num(0.0)) for k in range(count)]
    order = sorted(there, key=lambda k: -means[k])
    return list(dict.fromkeys([*order[: _FEW // 2], *order[-_FEW // 2 :]]))


def _histogram(e: Entry, k: int, top: float) -> dict[str, Any]:
    mine = e.labels == k
    radius = e.radius[mine & e.correct].clamp_max(top)
    counts = torch.histc(radius, _BINS, 0.0, top)
    plot = Plot(top, max(1.0, float(counts.max())), "", "", width=520, height=34, left=2, bottom=1, top=2, right=2)
    plot.bars([top * i / _BINS for i in range(_BINS + 1)], counts.tolist(), "hist")
    plot.marker()
    text = plot.strip(f"radii of {e.classes[k]}")
    wrong = int((mine & ~e.correct).sum())
    return {"name": e.classes[k], "class": k, "svg": Markup(text), "count": int(mine.sum()), "wrong": wrong}


def _training(e: Entry) -> list[str]:
    """Curves over the epochs: accuracy, and the range of the bound."""
    points = e.metrics
    if len(points) < 2:
        return []
    last = float(points[-1]["epoch"])
    shares = Plot(last, 100.0, "epoch", "estimated in training, %", width=520, height=260)
    shares.line([(m["epoch"], 100 * m["clean"]) for m in points], "c5")
    for i, key in enumerate(points[-1]["estimated_certified"]):
        shares.line([(m["epoch"], 100 * m["estimated_certified"].get(key, 0.0)) for m in points], f"c{i % 5}")
    highest = max(float(m["bound"][1]) for m in points) or 1.0
    bounds = Plot(last, highest * 1.05, "epoch", "bound of a pair of classes", width=520, height=260)
    low, high = ([(m["epoch"], float(m["bound"][i])) for m in points] for i in (0, 1))
    bounds.between(low, high, "c0")
    bounds.line(high, "c0")
    bounds.line(low, "c0")
    return [shares.text("accuracy over the epochs"), bounds.text("bound over the epochs")]


def _training_keys(e: Entry) -> list[tuple[str, str]]:
    """The colours of the curves, and what they are of."""
    keys = list(e.metrics[-1]["estimated_certified"]) if e.metrics else []
    return [("c5", "clean"), *((f"c{i % 5}", f"at {radius_text(float(key))}") for i, key in enumerate(keys))]


# --- images -----------------------------------------------------------------------------------------------------------
def _gallery(e: Entry) -> list[dict[str, Any]]:
    """The most and the least robust images, each with its nearest adversarial example, if attacks found one."""
    if e.images is None or tuple(e.images.shape[1:]) != tuple(e.certificate.input.shape):
        return []
    places = torch.arange(len(e.radius))[e.part]
    among = places[e.correct[e.part]]
    order = among[e.radius[among].argsort(descending=True, stable=True)].tolist()
    most = order[:_SHOWN]
    least = [i for i in order[::-1] if i not in most][:_SHOWN]
    groups = (("The most robust", most), ("The least robust", least))
    return [{"title": title, "images": [_image(e, i) for i in chosen]} for title, chosen in groups if chosen]


def _image(e: Entry, i: int) -> dict[str, Any]:
    assert e.images is not None
    image = e.images[i]
    found: dict[str, Any] = {
        "index": i,
        "label": e.classes[int(e.labels[i])],
        "radius": min(1e9, float(e.radius[i])),
        "radius_text": _floored(float(e.radius[i])),
        "image": _png(image),
        "distance": None,
    }
    j = 0 if e.attacked is None else i // e.attacked.every
    if e.attacked is not None and torch.isfinite(e.attacked.distance[j]):
        point = e.attacked.points[j].float()
        change = point - image.float() / 255
        largest = float(change.abs().max())
        found |= {
            "distance": float(e.attacked.distance[j]),
            "distance_text": f"{math.ceil(1e3 * float(e.attacked.distance[j])) / 1e3:.3f}",
            "adversarial": _png((255 * point).round().clamp(0, 255).to(torch.uint8)),
            "change": _png((127.5 + 127.5 * change / max(largest, 1e-9)).round().clamp(0, 255).to(torch.uint8)),
            "by": METHODS[e.attacked.by[j] or ""].title,
        }
    return found


def _floored(radius: float) -> str:
    """Three decimals, rounded down."""
    return f"{math.floor(1e3 * radius) / 1e3:.3f}" if radius < 1e6 else "beyond 1e6"


def _png(image: Tensor) -> str:
    """(C, H, W) uint8 as a data URI; other numbers of channels than 3 show their first."""
    pixels = image.permute(1, 2, 0).contiguous().numpy() if len(image) == 3 else image[0].contiguous().numpy()
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def _commands(e: Entry) -> list[str]:
    """How the certificate and the attacks were made, as far as these say."""
    c, a = e.certificate, e.attacked
    words = ["lipcert", "certify", "RUN", "--method", c.bound.method]
    if c.bound.smallgain is not None:
        words += ["--scaling", c.bound.smallgain.kind]
    if c.bound.scope != "pairwise":
        words += ["--scope", c.bound.scope]
    if c.precision.arithmetic != "float32":
        words += ["--precision", c.precision.arithmetic]
    if c.samples.global_radius is not None:
        words += ["--local"]
    part = [] if c.data.split == "test" else ["--split", c.data.split]
    if e.total is not None and c.data.samples < e.total:
        part += ["--first", str(c.data.samples)]
    at = [w for v in c.certified if v.epsilon > 0 for w in ("-e", repr(v.epsilon))]
    lines = [
        "lipcert train config.toml --out RUN   # the configuration below",
        " ".join([*words, *part, *at, "--save RUN/certificate.json"]),
        "lipcert verify RUN/certificate.json RUN",
    ]
    if a is not None:
        words = ["lipcert", "attack", "RUN", "--attacks", ",".join(a.methods), *part[: 2 * (c.data.split != "test")]]
        if e.total is None or min(a.part.stop, c.data.samples) < e.total:
            words += ["--first", str(min(a.part.stop, c.data.samples))]
        words += ["--every", str(a.every)] if a.every > 1 else []
        words += [w for r in a.epsilons for w in ("-e", repr(r))]
        options = a.about.get("options")
        for name, option in _ATTACK_OPTIONS.items():
            if isinstance(options, dict) and isinstance(options.get(name), int) and options[name] != option[1]:
                words += [option[0]] if options[name] is True else [option[0], str(options[name])]
        lines.append(" ".join(words))
    return [*lines, "lipcert report RUN"]


_ATTACK_OPTIONS: dict[str, tuple[str, int | None]] = {  # name: option, default
    "steps": ("--steps", None),
    "targets": ("--targets", 9),
    "seed": ("--seed", 0),
    "batch_size": ("--batch-size", 200),
    "spare": ("--spare-certified", False),
}
