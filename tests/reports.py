"""What a report is made of, without an attack: for the tests of the page and of the browser."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch

from lipcert import zoo
from lipcert.attacks import Attacked
from lipcert.certify import read_certificate
from lipcert.report import Entry, collect
from lipcert.train import RunFolder

NAME = "digits-mlp-crm"


def found_beyond(folder: RunFolder, samples: int = 100, factor: float = 1.25) -> Attacked:
    """As if an attack had found an adversarial example a little beyond each radius but one."""
    c = read_certificate(folder.certificate_file)
    radius = torch.tensor(c.samples.radius[:samples], dtype=torch.float64)
    labels, prediction = (torch.tensor(v[:samples]) for v in (c.samples.label, c.samples.prediction))
    distance = torch.where(prediction == labels, factor * radius, torch.inf)
    distance[3] = torch.inf
    return Attacked(
        key="key",
        methods=("pgd", "ddn"),
        epsilons=(0.5,),
        arithmetic="float32",
        about={},
        labels=labels,
        prediction=prediction,
        distances=torch.stack([torch.full_like(distance, torch.inf), distance]),
        points=torch.rand(samples, 1, 8, 8),
        seconds={"ddn": 1.5},
        done=set(),
        finished=True,
    )


@cache
def entry_of(attacked: bool = True) -> Entry:
    """The zoo's digits, with or without attacks."""
    folder = zoo.folder(NAME)
    entry = collect(folder)
    return replace(entry, attacked=found_beyond(folder)) if attacked else entry
