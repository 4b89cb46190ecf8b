"""Turning what pydantic found into lines a person can act on."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lipcert.hints import did_you_mean

__all__ = ["explain"]


def _models(annotation: Any) -> list[type[BaseModel]]:
    """All sections that an annotation mentions."""
    if get_origin(annotation) is None:
        is_model = isinstance(annotation, type) and issubclass(annotation, BaseModel)
        return [annotation] if is_model else []
    return [model for part in get_args(annotation) for model in _models(part)]


def _of_kind(models: list[type[BaseModel]], kind: str) -> list[type[BaseModel]]:
    return [m for m in models if kind in get_args(m.model_fields["kind"].annotation)]


@dataclass
class _Place:
    """Where a mistake is: the path as a person writes it, and what is known at its last item."""

    path: str
    keys: list[str]
    kind: str = ""
    inside: list[type[BaseModel]] = field(default_factory=list)


def _locate(location: tuple[int | str, ...], root: type[BaseModel]) -> _Place:
    """Pydantic's location has an extra item after each union, which says what alternative was tried."""
    place = _Place("", list(root.model_fields), inside=[root])
    tag_follows = False
    for item in location:
        if tag_follows:
            place.kind, tag_follows = str(item), False
            place.inside = _of_kind(place.inside, place.kind)
        elif isinstance(item, int):
            place.path += f"[{item}]"
        elif not (item.startswith("<") and item.endswith(">")):
            place.path += f".{item}" if place.path else item
            place.keys = [key for model in place.inside for key in model.model_fields]
            info = next((m.model_fields[item] for m in place.inside if item in m.model_fields), None)
            place.inside = _models(info.annotation) if info else []
            place.kind = "" if info else place.kind
            tag_follows = info is not None and info.discriminator == "kind"
    return place


def _kind_mistake(given: object, place: _Place) -> str:
    kinds = [kind for model in place.inside for kind in get_args(model.model_fields["kind"].annotation)]
    kind = given.get("kind") if isinstance(given, dict) else None
    if kind is None:
        return f"needs a key 'kind', one of {', '.join(kinds)}"
    hint = did_you_mean(str(kind), kinds, f"there are: {', '.join(kinds)}")
    return f"unknown kind {kind!r}; {hint}"


def _say(detail: ErrorDetails, place: _Place) -> str:
    error, given = detail["type"], detail.get("input")
    if error == "extra_forbidden":
        hint = did_you_mean(str(detail["loc"][-1]), place.keys)
        of_kind = f" for kind '{place.kind}'" if place.kind else ""
        return f"unknown key{of_kind}; {hint or 'there are: ' + ', '.join(place.keys)}"
    if error == "missing":
        return "is required"
    if error in ("union_tag_invalid", "union_tag_not_found"):
        return _kind_mistake(given, place)
    if error in ("model_type", "model_attributes_type", "dict_type"):
        return f"must be a table; got {given!r}"
    if error == "value_error":
        return str(detail.get("ctx", {}).get("error", detail["msg"]))
    said = f"{detail['msg'].replace('Input should be', 'must be')}; got {given!r}"
    if error == "literal_error":
        known = re.findall(r"'([^']*)'", str(detail["ctx"]["expected"]))
        said = f"{said}; {did_you_mean(str(given), known)}".removesuffix("; ")
    return said


def explain(error: ValidationError, root: type[BaseModel]) -> list[str]:
    """One line for each mistake: its path in the file, and what to do about it."""
    lines: list[str] = []
    for detail in error.errors(include_url=False):
        place = _locate(detail["loc"], root)
        said = _say(detail, place).splitlines()
        lines += [f"{place.path}: {line}" if place.path else line for line in said]
    return lines
