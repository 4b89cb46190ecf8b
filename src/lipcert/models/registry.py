"""Models by name: one registered builder each."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import nn

from lipcert.errors import ConfigError
from lipcert.hints import did_you_mean
from lipcert.layers.blocked import blocked
from lipcert.layers.fold import FOLDABLE, fold
from lipcert.models.normalize import Normalize
from lipcert.models.options import is_positive_integer, positive_integers

__all__ = ["available", "build", "options_of", "register"]

Builder = TypeVar("Builder", bound=Callable[..., nn.Module])

_BUILDERS: dict[str, Callable[..., nn.Module]] = {}
_FIXED = ("input_shape", "num_classes")


def register(name: str) -> Callable[[Builder], Builder]:
    """Make a builder known by name: ``builder(*, input_shape, num_classes, **options) -> nn.Module``.

    ``input_shape`` is without the batch dimension. The builder's further keyword arguments, each with a
    default, are its options; it raises :class:`~lipcert.errors.ConfigError` for a value that does not fit.

    Raises:
        ConfigError: the name is taken by another builder.

    >>> @register("example-linear")
    ... def linear(*, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    ...     return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0], num_classes))
    >>> build("example-linear", input_shape=(4,), num_classes=2)[1]
    Linear(in_features=4, out_features=2, bias=True)
    >>> del _BUILDERS["example-linear"]
    """

    def remember(builder: Builder) -> Builder:
        if name in _BUILDERS:
            raise ConfigError(f"a model '{name}' is registered already; choose another name")
        _BUILDERS[name] = builder
        return builder

    return remember


def available() -> list[str]:
    """The names that :func:`build` knows, sorted.

    >>> "4c3f" in available()
    True
    """
    return sorted(_BUILDERS)


def _builder(name: str) -> Callable[..., nn.Module]:
    if name not in _BUILDERS:
        hint = did_you_mean(str(name), available(), f"there are: {', '.join(available())}")
        raise ConfigError(f"unknown model {name!r}; {hint}")
    return _BUILDERS[name]


def options_of(name: str) -> dict[str, Any]:
    """The options of a model and their defaults.

    Raises:
        ConfigError: an unknown model.

    >>> options_of("8c2f")
    {'padding': 'code', 'activation': 'relu', 'init': 'torch'}
    """
    parameters = inspect.signature(_builder(name)).parameters
    return {key: p.default for key, p in parameters.items() if key not in _FIXED}


def build(
    name: str,
    *,
    input_shape: Sequence[int],
    num_classes: int,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    folded: bool = False,
    terms: int | None = None,
    **options: Any,
) -> nn.Module:
    """Build a model with fresh weights (drawn from torch's global generator).

    Args:
        name: one of :func:`available`.
        input_shape: without the batch dimension: (C, H, W) for images.
        num_classes: C ≥ 2 logits.
        mean: with ``std``, makes the first layer a :class:`~lipcert.models.normalize.Normalize`; the model
            then still takes the raw input in [0, 1], and radii are in its units.
        std: see ``mean``.
        folded: of ordinary layers with fixed weights, in the form that :func:`lipcert.layers.fold` gives: to load the
            weights of a folded model into. Fresh ones promise nothing.
        terms: add up at most so many products at a time (:func:`lipcert.layers.blocked`); None: as torch does. The
            weights are the same.
        options: the model's own, see :func:`options_of`.

    Returns:
        The model, in train mode (in eval mode if it is folded, or has ``terms``), mapping ``(N, *input_shape)`` to
        (N, num_classes).

    Raises:
        ConfigError: an unknown name or option, or a value that does not fit.

    >>> model = build("mlp", input_shape=(1, 8, 8), num_classes=10, widths=[32])
    >>> [name for name, _ in model.named_children()]
    ['flatten', 'fc1', 'act1', 'fc2']
    """
    builder = _builder(name)
    known = list(options_of(name))
    unknown = [key for key in options if key not in known]
    if unknown:
        hint = f"there are: {', '.join(known) or 'none'}"
        for key in reversed(unknown):
            hint = did_you_mean(key, known, hint)
        raise ConfigError(f"model '{name}' has no option {', '.join(map(repr, unknown))}; {hint}")
    shape = positive_integers("input_shape", input_shape)
    if not shape:
        raise ConfigError("input_shape is empty; it is the shape of one input, without the batch")
    if not is_positive_integer(num_classes) or num_classes < 2:
        raise ConfigError(f"num_classes must be an integer of at least 2; got {num_classes!r}")
    if (mean is None) != (std is None):
        raise ConfigError("normalisation needs both mean and std (or neither)")
    if not isinstance(folded, bool):
        raise ConfigError(f"folded must be true or false; got {folded!r}")
    model = builder(input_shape=shape, num_classes=num_classes, **options)
    if folded:
        model = fold(model, prove=False)
    if terms is not None:
        if any(isinstance(m, FOLDABLE) for m in model.modules()):
            raise ConfigError(f"model '{name}' has layers that compute their weights: terms needs folded=true")
        model = blocked(model, terms=terms)
    if mean is None or std is None:
        return model
    first = Normalize(mean, std, trailing=len(shape) - 1)
    if first.channels not in (1, shape[0]):
        raise ConfigError(
            f"normalisation is for {first.channels} channels, the input {shape} has {shape[0]}: "
            "give one number, or one for each channel"
        )
    # One flat Sequential: the names of the layers are the same with normalisation and without.
    # (A layer that is there twice is also twice among its items; ``named_children`` leaves repeats out.)
    rest = zip(model._modules, model, strict=True) if type(model) is nn.Sequential else [("net", model)]
    return nn.Sequential(OrderedDict([("normalize", first), *rest]))
