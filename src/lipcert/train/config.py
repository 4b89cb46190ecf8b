"""Loading the configuration of a training run from a TOML file or from those that come with the library."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lipcert.errors import ConfigError
from lipcert.hints import did_you_mean
from lipcert.train import toml
from lipcert.train.config_errors import explain
from lipcert.train.schema import RunConfig

__all__ = ["RunConfig", "available_configs", "load_config", "parse_config"]


def available_configs() -> list[str]:
    """The names of the configurations that come with the library, sorted.

    >>> "mnist-4c3f-crm" in available_configs()
    True
    """
    folder = files("lipcert").joinpath("configs")
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))


def _read(source: str | Path) -> str:
    names = available_configs()
    if isinstance(source, str) and source in names:
        return files("lipcert").joinpath("configs").joinpath(f"{source}.toml").read_text(encoding="utf-8")
    try:
        return Path(source).read_text(encoding="utf-8-sig")  # an editor may have put a mark at the start
    except FileNotFoundError as error:
        hint = did_you_mean(Path(source).name.removesuffix(".toml"), names)
        raise ConfigError(
            f"there is no configuration file '{source}', nor one of that name in the library; "
            f"{hint + ' ' if hint else ''}those of the library are: {', '.join(names)}"
        ) from error
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL in the name
        raise ConfigError(f"cannot read the configuration '{source}': {error}") from error


def _override(document: dict[str, Any], override: str) -> str | None:
    """Set one ``key.sub=value`` in place; returns what is wrong with it, if anything is."""
    path, equals, text = (part.strip() for part in override.partition("="))
    keys = [key.strip() for key in path.split(".")]
    if not equals or not all(keys):
        return f"override {override!r} is not of the form key.sub=value"
    try:
        value = toml.parse_value(text)
    except ConfigError as error:
        return f"override of {path}: {error}"
    table = document
    for depth, key in enumerate(keys[:-1], 1):
        inner = table.setdefault(key, {})
        if not isinstance(inner, dict):
            where = ".".join(keys[:depth])
            return f"override of {path}: {where} is {inner!r}, not a table; set {where} itself"
        table = inner
    table[keys[-1]] = value
    return None


def _validated(document: Mapping[str, Any], source: str, mistakes: list[str]) -> RunConfig:
    config = None
    try:
        config = RunConfig.model_validate(document)
    except ValidationError as error:
        mistakes = mistakes + explain(error, RunConfig)
    if config is None or mistakes:
        lines = "".join(f"\n  - {line}" for line in mistakes)
        raise ConfigError(f"{source} has {len(mistakes)} mistake{'s' if len(mistakes) > 1 else ''}:{lines}")
    return config


def parse_config(document: Mapping[str, Any]) -> RunConfig:
    """Check a nested mapping, such as :meth:`RunConfig.to_dict` makes.

    Raises:
        ConfigError: listing all mistakes, each with its path.

    >>> config = load_config("mnist-4c3f-crm")
    >>> parse_config(config.to_dict()) == config
    True
    """
    return _validated(document, "the configuration", [])


def load_config(path: str | Path, overrides: Iterable[str] = ()) -> RunConfig:
    """Load a configuration.

    Args:
        path: a name of :func:`available_configs`, or the path of a TOML file (``./name`` where both exist).
        overrides: ``key.sub=value`` each, in order. The value is a TOML value; a bare word is a string.

    Returns:
        The checked, frozen configuration.

    Raises:
        ConfigError: the file is missing, is not TOML (with the line), or has mistakes; then all of them are
            listed, each with its path and, for a misspelt key, the nearest known one.

    >>> config = load_config("mnist-4c3f-crm", ["train.epochs=40", "model.options.activation=tanh"])
    >>> config.train.epochs, config.model.options
    (40, {'activation': 'tanh'})
    >>> load_config("mnist-4c3f-crm", ["train.epoch=40", "loss.weight=-1"])
    Traceback (most recent call last):
    ...
    lipcert.errors.ConfigError: configuration 'mnist-4c3f-crm' has 2 mistakes:
      - loss.weight: must be greater than or equal to 0; got -1
      - train.epoch: unknown key; did you mean 'epochs'?
    """
    text = _read(path)
    try:
        document = toml.loads(text)
    except ConfigError as error:
        raise ConfigError(f"configuration '{path}': {error}") from error
    mistakes = [_override(document, override) for override in overrides]
    return _validated(document, f"configuration '{path}'", [m for m in mistakes if m is not None])
