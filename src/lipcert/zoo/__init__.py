"""Trained models that come with lipcert, each with its run's configuration and its certificate.

A model is a run folder without a checkpoint, so whatever takes a run takes the name of a model too:
``lipcert certify digits-mlp-crm``. ``certificate.json`` beside it is what :mod:`lipcert.certify` proved of it.
"""

from __future__ import annotations

from pathlib import Path

from torch import nn

from lipcert.errors import CheckpointError
from lipcert.hints import did_you_mean
from lipcert.train import RunFolder

__all__ = ["available", "certificate", "folder", "load"]

_HERE = Path(__file__).parent


def available() -> tuple[str, ...]:
    """The names of the models.

    >>> "digits-mlp-crm" in available()
    True
    """
    return tuple(sorted(path.parent.name for path in _HERE.glob("*/model.safetensors")))


def folder(name: str) -> RunFolder:
    """The run folder of a model; not to be written to.

    Raises:
        CheckpointError: there is no model of that name.

    >>> folder("digits-mlp-crm").config().data.name
    'digits'
    """
    if name not in available():
        known = f"there are: {', '.join(available())}."
        raise CheckpointError(f"lipcert comes with no model {name!r}; {did_you_mean(name, available(), known)}")
    return RunFolder(_HERE / name)


def certificate(name: str) -> Path:
    """The file of a model's certificate, for ``lipcert verify`` or :func:`lipcert.certify.read_certificate`.

    Raises:
        CheckpointError: there is no model of that name.
    """
    return folder(name).path / "certificate.json"


def load(name: str) -> nn.Module:
    """A trained model by its name, in eval mode: raw pixels in [0, 1] → logits.

    Args:
        name: one of :func:`lipcert.zoo.available`, which ``lipcert zoo`` lists with what is certified of each.

    Raises:
        CheckpointError: there is no model of that name.

    >>> import torch, lipcert
    >>> net = lipcert.load("digits-mlp-crm")
    >>> net(torch.rand(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    return folder(name).load_model()[0]
