"""``lipcert models``, ``lipcert datasets`` and ``lipcert configs``: what there is."""

from __future__ import annotations

from lipcert import data, models
from lipcert.cli.common import DataOption, JsonOption, console, emit, guarded, say, table
from lipcert.train import available_configs, load_config

__all__ = ["configs", "datasets", "list_models"]


def list_models(as_json: JsonOption = False) -> None:
    """List the models that can be built by name, with their options."""
    found = {name: models.options_of(name) for name in models.available()}
    if as_json:
        emit(found)
        return
    shown = table("model", "options and their defaults")
    shown.columns[1].justify = "left"
    for name, options in found.items():
        shown.add_row(name, ", ".join(f"{k}={v!r}" for k, v in options.items()).replace("[", r"\["))
    console.print(shown)


def datasets(root: DataOption = None, as_json: JsonOption = False) -> None:
    """List the data sets that can be loaded by name, and where their files are looked for."""
    found = data.available()
    if as_json:
        emit(
            [
                {
                    "name": d.name,
                    "title": d.title,
                    "shape": d.shape,
                    "classes": d.num_classes,
                    "sizes": dict(d.sizes),
                    "layout": d.layout,
                    "downloadable": d.downloadable,
                    "citation": d.citation,
                }
                for d in found
            ]
        )
        return
    say(f"Looked for under {root or data.default_root()} (--data or LIPCERT_DATA).\n")
    for d in found:
        shape = "×".join(map(str, d.shape)) if d.shape else "any size"
        count = f", {d.num_classes} classes" if d.num_classes else ""
        fetch = ", --download fetches it" if d.downloadable else ""
        console.print(f"[bold]{d.name}[/bold]  {d.title}: {shape}{count}{fetch}", soft_wrap=True)
        say(f"    {d.layout}")


def configs(as_json: JsonOption = False) -> None:
    """List the ready configurations of `lipcert train`."""
    with guarded():
        found = {name: load_config(name) for name in available_configs()}
    if as_json:
        emit({name: config.to_dict() for name, config in found.items()})
        return
    shown = table("configuration", "data", "model", "loss", "epochs")
    for name, c in found.items():
        shown.add_row(name, c.data.name, c.model.name, c.loss.kind, str(c.train.epochs))
    console.print(shown)
