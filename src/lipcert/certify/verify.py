"""Checking a certificate against the network and the data that it speaks of.

All that is cheap is computed again from the module and the samples, and compared with what the certificate claims; the
norms, which are the expensive part, are confirmed by another method than the one that proved them. Nothing that stands
in the certificate is taken on trust, except what the report lists as not checked.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Literal

import torch
from torch import nn

from lipcert.bounds.lipschitz import FAILURE
from lipcert.certify.canonical import shown
from lipcert.certify.certificate import assumptions_of
from lipcert.certify.identity import Origin, Samples, describe_graph, normalisations, weights_digest
from lipcert.certify.recompute import CONFIRM_LIMIT, TOLERANCE, Recomputed, claimed_pairs, recomputed
from lipcert.certify.report import Check, NotChecked, Refuted, Report, examine
from lipcert.certify.schema import Certificate, CertifiedBound, PartBound
from lipcert.errors import BoundError
from lipcert.graph import Graph, check_mode, trace

__all__ = ["verify"]


def verify(
    c: Certificate,
    module: nn.Module,
    data: Samples | None = None,
    *,
    origin: Origin | None = None,
    norms: Literal["all", "none"] = "all",
    dense_limit: int = CONFIRM_LIMIT,
    failure: float = FAILURE,
) -> Report:
    """Check a certificate against the module and, if given, the samples that it speaks of.

    Args:
        c: as :func:`~lipcert.certify.read_certificate` reads it.
        module: the network, in eval mode.
        data: the samples; without them nothing that depends on them is checked.
        origin: how the module was built, if known, to compare with what the certificate says of it.
        norms: ``"none"`` saves the time to confirm the norms by another method.
        dense_limit: the largest smaller side of a matrix that may be formed for that.
        failure: the probability with which a wrong norm may be confirmed all the same; 0 allows no randomised test.

    Returns:
        every check, with ``report.accepted`` if none failed.

    Raises:
        BoundError: ``failure`` is no probability.
        ModuleStateError: the module is in train mode.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lipcert.certify import Samples, certificate_of, verify
        >>> net = nn.Linear(3, 2).eval()
        >>> samples = Samples.of(torch.rand(4, 3), torch.tensor([0, 1, 1, 0]), name="example")
        >>> report = verify(certificate_of(net, samples), net, samples, norms="none")
        >>> report.accepted, report["radii"].status, [check.name for check in report.unchecked]
        (True, 'passed', ['model', 'norms, by another method', 'history'])
    """
    if not 0 <= failure < 0.1:
        raise BoundError(f"failure is a probability, such as 1e-12, and less than 0.1; got {failure}.")
    check_mode(module)
    checks = [
        examine("model", lambda: _model(c, origin)),
        examine("precision", lambda: _precision(c)),
        examine("failure", lambda: _failure(c)),
        examine("sums", lambda: _sums(c)),
        examine("quotients", lambda: _quotients(c)),
        examine("weights", lambda: _weights(c, module)),
        examine("input", lambda: _input(c, module, data)),
    ]
    graph: Graph | None = None

    def traced() -> str:
        nonlocal graph
        if any(check.status == "failed" for check in checks[-2:]):  # nothing is traced at a shape that is not its own
            raise NotChecked("this is another network, or its input another one")
        found = trace(module, c.input.shape)
        said = _graph(c, found)
        graph = found
        return said

    checks.append(examine("graph", traced))
    network = None if graph is None else Recomputed(c, graph, dense_limit=dense_limit, failure=failure)
    local = c.samples.global_radius is not None
    more = recomputed(network, data, norms=norms == "all", local=local)
    return Report((*checks, *more, Check("history", "not checked", _HISTORY)))


_HISTORY = (
    "when and with which versions it was made, and that each norm was proved by the method and with the probability "
    "of failure that it says, cannot be computed again; the norms themselves can"
)


# --- identity ---------------------------------------------------------------------------------------------------------
def _weights(c: Certificate, module: nn.Module) -> str:
    if weights_digest(module) != c.model.weights_sha256:
        raise Refuted("the module's weights are not those that were certified")
    return f"the module's weights are those that were certified (SHA-256 {c.model.weights_sha256[:12]}…)"


def _model(c: Certificate, origin: Origin | None) -> str:
    if origin is None:
        raise NotChecked("how the module was built is not known: its name, options and class names are as claimed")
    for what, mine, theirs in (
        ("name", origin.name, c.model.name),
        ("options", origin.plain_options, c.model.options),
        ("classes", origin.classes, c.model.classes),
        ("input shape", origin.input_shape, c.input.shape),
    ):
        if mine is not None and mine != theirs:
            raise Refuted(f"its {what}: the certificate says {shown(theirs)}, the model's own is {shown(mine)}")
    return "name, options, classes and input shape are the model's own"


def _input(c: Certificate, module: nn.Module, data: Samples | None) -> str:
    if data is not None and data.shape != c.input.shape:
        raise Refuted(f"certified are inputs of shape {c.input.shape}, the samples have {data.shape}")
    found = [(n["place"], n["mean"], n["std"]) for n in normalisations(module)]
    if found != [(n.place, n.mean, n.std) for n in c.input.normalization]:
        raise Refuted("the normalisation layers are not those of the module")
    return "its normalisation layers are the module's; radii are in units of the raw input"


def _graph(c: Certificate, graph: Graph) -> str:
    nodes, sha256 = describe_graph(graph)
    claimed = [n.model_dump() for n in c.model.graph.nodes]
    if sha256 != c.model.graph.sha256 or claimed != nodes:
        raise Refuted(
            "the module does not compute what was certified, or is recorded otherwise by another version of torch or "
            f"lipcert: the certificate was made with torch {c.versions.torch}, this is {torch.__version__}"
        )
    dtype = str(graph.capture.sample.dtype).removeprefix("torch.")
    if dtype != c.model.dtype:
        raise Refuted(f"the module is in {dtype}, certified was {c.model.dtype}")
    return f"the module computes what was certified: {len(nodes)} nodes, {dtype}"


def _precision(c: Certificate) -> str:
    if c.precision.assumptions != assumptions_of(c.precision.arithmetic):
        raise Refuted(f"the assumptions are not those on which radii in {c.precision.arithmetic} arithmetic rest")
    return f"radii are for {c.precision.arithmetic} arithmetic, on the assumptions that lipcert states for it"


# --- what the file says of itself -------------------------------------------------------------------------------------
def _sums(c: Certificate) -> str:
    columns, count = c.samples, c.data.samples
    correct = [a == b for a, b in zip(columns.prediction, columns.label, strict=True)]
    if (c.clean.count, c.clean.share) != (sum(correct), sum(correct) / count):
        raise Refuted("the clean accuracy is not that of its labels and predictions")
    for a in c.certified:
        verdict = [right and r > a.epsilon for right, r in zip(correct, columns.radius, strict=True)]
        if list(a.verdict) != verdict:
            raise Refuted(f"the verdict on sample {_first(verdict, a.verdict)} at {a.epsilon:g} does not follow")
        if (a.count, a.share) != (sum(verdict), sum(verdict) / count):
            raise Refuted(f"the certified accuracy at {a.epsilon:g} is not that of its samples")
    return f"verdicts, counts and shares follow from labels, predictions and radii of {count:,} samples"


def _failure(c: Certificate) -> str:
    bounds: tuple[CertifiedBound | PartBound, ...] = (c.bound, *c.bound.parts)
    together = [one for part in c.bound.parts for one in (part.behind, part.until)]
    evidence = [*(b.smallgain for b in bounds), *c.bound.further, *together]
    scaled = [one.norm.failure for one in evidence if one is not None]
    failures = [*(n.failure for b in bounds for n in b.norms), *scaled, c.bound.passed_over]
    total, stated = math.fsum(failures), c.bound.failure
    if abs(stated - total) > TOLERANCE * total:
        raise Refuted(f"the norms may fail with probability {total:.6g} together; stated is {stated:.6g}")
    return f"the norms' probabilities of failure add up to the one stated, {stated:.6g}"


def _first(one: object, other: object) -> int:
    return next(i for i, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)  # type: ignore[call-overload]


def _quotients(c: Certificate) -> str:
    """In exact rational numbers: ``real_radius · L_ab ≤ margin``."""
    pairs, columns = claimed_pairs(c), c.samples
    rows = zip(columns.prediction, columns.runner_up, columns.margin, columns.real_radius, strict=True)
    for n, (a, b, margin, radius) in enumerate(rows):
        slope = float(pairs[a, b])
        if radius > 0 and Fraction(radius) * Fraction(slope) > Fraction(margin):
            raise Refuted(f"sample {n}: radius {radius!r} is more than its margin over the bound, {margin!r}/{slope!r}")
        if radius < margin / slope * (1 - 1e-12) - 1e-300:
            raise Refuted(f"sample {n}: radius {radius!r} is not its margin over the bound, {margin!r}/{slope!r}")
    if c.precision.arithmetic == "real" and columns.by_bound != columns.real_radius:
        raise Refuted("radii for real arithmetic are not those in real arithmetic")
    return "every real_radius is its margin over the bound, rounded down (in exact rational numbers)"
