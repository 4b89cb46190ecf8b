"""Certificates: made from certified radii, written to a file, and read from one.

A certificate says which network, which samples, which bound and how it was proved, and the radius of every sample.
What checks that it is true is :func:`lipcert.certify.verify`; see docs/certificate.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from lipcert.bounds import UpperBound, graph_bound
from lipcert.bounds.evidence import Evidence, Scaling
from lipcert.bounds.parts import Proofs
from lipcert.bounds.refine import nearest_pairs
from lipcert.certify.canonical import canonical, parse, read_bytes, shown
from lipcert.certify.identity import Origin, Samples, describe_graph, normalisations, versions, weights_digest
from lipcert.certify.local import Local
from lipcert.certify.network import BATCH, certified, executes, logits_of
from lipcert.certify.radius import CertifiedRadii, Radii
from lipcert.certify.rounding import ASSUMPTIONS
from lipcert.certify.schema import FORMAT, VERSION, Certificate, CertifiedBound, PartBound, SmallGain
from lipcert.errors import CertificateError
from lipcert.files import replacing
from lipcert.graph import Graph, check_mode, trace
from lipcert.loop import Pair
from lipcert.norms import Norm

__all__ = [
    "assumptions_of",
    "certificate_of",
    "evidence_of",
    "make_certificate",
    "norms_of",
    "read_certificate",
    "together_of",
    "write_certificate",
]

_EXACT = "weights and inputs are the exact numbers that are stored"
_REAL = "the network is that of real arithmetic: the rounding of its execution is not covered"
_MOST_ERRORS = 5  # that one message lists


def assumptions_of(arithmetic: str) -> tuple[str, ...]:
    """What radii in an arithmetic rest on, in words."""
    return (_EXACT, _REAL) if arithmetic == "real" else (_EXACT, *ASSUMPTIONS)


# --- making -----------------------------------------------------------------------------------------------------------
def make_certificate(
    graph: Graph, result: Radii, samples: Samples, *, epsilons: Iterable[float] = (), origin: Origin | None = None
) -> Certificate:
    """A certificate of radii that were computed before.

    Args:
        graph: the network, at the weights that the radii are of.
        result: of all the samples, in order, from an upper bound, with their labels.
        samples: that were certified.
        epsilons: radii at which the certified accuracy is stated.
        origin: how the model was built, if known.

    Raises:
        CertificateError: the radii come from an estimate, are of other samples, or hold what no certificate can.
    """
    bound = result.bound
    if not isinstance(result, CertifiedRadii) or not isinstance(bound, UpperBound):
        raise CertificateError("an estimate proves nothing and makes no certificate: use guarantee='upper'.")
    if result.labels is None or not torch.equal(result.labels.cpu(), samples.labels):
        raise CertificateError("the radii are not of these samples: their labels differ.")
    if samples.shape != graph.input_shape or (len(samples.classes),) != graph.output_shape:
        raise CertificateError(
            f"the network maps {graph.input_shape} to {graph.output_shape}, the samples are of shape {samples.shape} "
            f"in {len(samples.classes)} classes."
        )
    if int(result.prediction.min()) < 0:
        raise CertificateError("a logit is not finite, so there is nothing to certify: remove that sample.")
    origin, nodes = origin or Origin(), describe_graph(graph)
    smallest, largest = (torch.cat([v(x)[None].double().cpu() for x in samples.batches(1000)]) for v in _ENDS)
    content: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "versions": versions(),
        "model": {
            "name": origin.name,
            "options": origin.plain_options,
            "dtype": _dtype(graph),
            "weights_sha256": weights_digest(graph.capture.module),
            "classes": samples.classes,
            "graph": {"sha256": nodes[1], "nodes": nodes[0]},
        },
        "input": {
            "shape": samples.shape,
            "norm": "l2",
            "unit": "raw input",
            "smallest": float(smallest.min()),
            "largest": float(largest.max()),
            "preprocessing": "none outside the model",
            "normalization": normalisations(graph.capture.module),
        },
        "bound": _bound(bound),
        "precision": {"arithmetic": result.precision, "assumptions": assumptions_of(result.precision)},
        "data": {"name": samples.name, "split": samples.split, "samples": len(samples), "sha256": samples.sha256},
        **_outcome(result, samples, epsilons),
    }
    return _validated(content, "this cannot stand in a certificate")


_ENDS = (torch.min, torch.max)


def _dtype(graph: Graph) -> str:
    return str(graph.capture.sample.dtype).removeprefix("torch.")


def _bound(bound: UpperBound) -> dict[str, Any]:
    value = bound.value.detach().double().cpu()
    rows = value[None, None] if value.ndim == 0 else value[None] if value.ndim == 1 else value
    own = math.fsum(risk for one in (bound, *bound.parts) for risk in _risks(one))
    chosen = bool(bound.attempts or bound.further)  # from more than stands here
    passed_over = max(0.0, bound.failure - own) if chosen and bound.failure > own * (1 + 2.0**-40) else 0.0
    return {
        "method": bound.method,
        "scope": bound.scope,
        "guarantee": bound.guarantee,
        "failure": min(1.0, math.fsum([own, passed_over])),
        "passed_over": passed_over,
        "slack": max(0.0, float(bound.slack)),
        "value": rows.tolist(),
        **_proofs(bound),
        "further": [_smallgain(one) for one in bound.further],
        "parts": [
            {
                **_proofs(one),
                "behind": None if one.behind is None else _smallgain(one.behind),
                "until": None if one.until is None else _smallgain(one.until),
            }
            for one in bound.parts
        ],
    }


def _proofs(bound: UpperBound) -> dict[str, Any]:
    return {
        "norms": [
            {"target": k, "source": j, "upper": n.upper, "lower": n.lower, "method": n.method, "failure": n.failure}
            for (k, j), n in sorted(bound.norms.items())
        ],
        "smallgain": None if bound.evidence is None else _smallgain(bound.evidence),
    }


def _risks(bound: UpperBound) -> list[float]:
    """The probabilities with which its norms are too small, those of scaled maps among them."""
    evidence = [bound.evidence, bound.behind, bound.until, *bound.further]
    scaled = [one.norm.failure for one in evidence if one is not None and one.norm is not None]
    return [*(n.failure for n in bound.norms.values()), *scaled]


def _smallgain(evidence: Evidence) -> dict[str, Any]:
    norm, output = evidence.norm, evidence.output
    assert norm is not None
    return {
        "kind": evidence.scaling.kind,
        "weights": [{"shape": list(d.shape), "values": d.flatten().tolist()} for d in evidence.scaling.weights],
        "output": output.tolist() if isinstance(output, Tensor) else [[output]],
        "norm": {"upper": norm.upper, "lower": norm.lower, "method": norm.method, "failure": norm.failure},
    }


def stated(bound: UpperBound) -> str:
    """A bound as it stands in a certificate: JSON, for :func:`restated`."""
    return CertifiedBound.model_validate(_bound(bound)).model_dump_json()


def restated(graph: Graph, bound: CertifiedBound | str) -> UpperBound:
    """The bound that the stated norms and weights give for a network: as good as they are.

    Raises:
        lipcert.errors.BoundError: they are of another network.
    """
    c = CertifiedBound.model_validate_json(bound) if isinstance(bound, str) else bound
    found = graph_bound(
        graph,
        method=c.method,
        scope=c.scope,
        guarantee="upper",
        norms=norms_of(c),
        evidence=evidence_of(c),
        further=further_of(c),
        parts=[Proofs(norms_of(one), evidence_of(one), *together_of(one)) for one in c.parts],
    )
    assert isinstance(found, UpperBound)
    return found


def norms_of(bound: CertifiedBound | PartBound) -> dict[Pair, Norm]:
    """The norms of a bound as a certificate states them."""
    return {(n.target, n.source): Norm(n.upper, n.lower, n.method, n.failure) for n in bound.norms}


def evidence_of(bound: CertifiedBound | PartBound) -> Evidence | None:
    """The evidence of a small-gain bound as a certificate states it; whether it fits a network is not checked."""
    return None if bound.smallgain is None else _evidence(bound.smallgain)


def together_of(part: PartBound) -> tuple[Evidence | None, Evidence | None]:
    """What a certificate states of all behind a part, and of all up to its end; whether it fits is not checked."""
    behind, until = (None if one is None else _evidence(one) for one in (part.behind, part.until))
    return behind, until


def further_of(bound: CertifiedBound) -> list[Evidence]:
    """What further evidence a certificate states; whether it fits a network is not checked."""
    return [_evidence(one) for one in bound.further]


def _evidence(found: SmallGain) -> Evidence:
    weights = [torch.tensor(d.values, dtype=torch.float64).reshape(d.shape) for d in found.weights]
    output = torch.tensor(found.output, dtype=torch.float64)
    norm = Norm(found.norm.upper, found.norm.lower, found.norm.method, found.norm.failure)
    return Evidence(Scaling(found.kind, tuple(weights)), output if len(output) > 1 else float(output), norm)


def _outcome(result: Radii, samples: Samples, epsilons: Iterable[float]) -> dict[str, Any]:
    """Counts and columns."""
    prediction, radius = result.prediction.cpu(), result.radius.cpu()
    alone = result if result.alone is None else result.alone
    correct, count = prediction == samples.labels, len(samples)
    verdicts = {e: correct & (radius > e) for e in sorted({float(e) for e in epsilons})}
    return {
        "clean": {"count": int(correct.sum()), "share": int(correct.sum()) / count},
        "certified": [
            {"epsilon": e, "count": int(v.sum()), "share": int(v.sum()) / count, "verdict": v.tolist()}
            for e, v in verdicts.items()
        ],
        "samples": {
            "label": samples.labels.tolist(),
            "prediction": prediction.tolist(),
            "runner_up": result.runner_up.tolist(),
            "margin": result.margin.tolist(),
            "real_radius": alone.real.tolist(),
            "global_radius": None if result.alone is None else alone.radius.tolist(),
            "radius": radius.tolist(),
        },
    }


def certificate_of(
    module: nn.Module,
    samples: Samples,
    *,
    epsilons: Iterable[float] = (),
    origin: Origin | None = None,
    precision: str | None = None,
    local: Local = False,
    **bounding: Any,
) -> Certificate:
    """Bound a module, certify its predictions on samples, and make the certificate.

    Args:
        module: a supported classifier in eval mode.
        samples: to certify, in the units in which the radius is wanted.
        epsilons, origin: see :func:`make_certificate`.
        precision, local: see :func:`lipcert.certify`.
        bounding: ``method``, ``scope`` (by default ``"pairwise"``), ``dense_limit``, ``failure``, ``slack`` of
            :func:`lipcert.lipschitz`.

    Raises:
        lipcert.errors.LipcertError: what these raise.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from lipcert.certify import Samples, certificate_of
        >>> net = nn.Linear(3, 2).eval()
        >>> samples = Samples.of(torch.rand(4, 3), torch.tensor([0, 1, 1, 0]), name="example")
        >>> certificate = certificate_of(net, samples, epsilons=[0.1])
        >>> certificate.bound.guarantee, len(certificate.samples.radius)
        ('upper', 4)
    """
    check_mode(module)
    graph = trace(module, samples.shape)
    rounds = executes(graph, precision)
    if bounding.get("refine"):
        logits = [logits_of(module, x, batch_size=BATCH) for x in samples.batches(BATCH)]
        bounding = {**bounding, "pairs": nearest_pairs(torch.cat(logits))}
    bound = graph_bound(graph, guarantee="upper", parts=rounds, **{"scope": "pairwise", **bounding})
    assert isinstance(bound, UpperBound)
    result = certified(graph, bound, samples.batches(BATCH), samples.labels, precision, local=local)
    return make_certificate(graph, result, samples, epsilons=epsilons, origin=origin)


# --- files ------------------------------------------------------------------------------------------------------------
def write_certificate(path: str | Path, certificate: Certificate) -> None:
    """Write a certificate, whole or not at all.

    Raises:
        CertificateError: it cannot be written.
    """
    path, content = Path(path), canonical(certificate.model_dump())
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise CertificateError(f"cannot write {path}: {error.strerror or error}") from error


def read_certificate(path: str | Path) -> Certificate:
    """Read a certificate with suspicion: nothing is executed, no name in it is opened, and its size is limited.

    Raises:
        CertificateError: it is not there, or not byte for byte what :func:`write_certificate` writes.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from lipcert.certify import Samples, certificate_of, read_certificate, write_certificate
        >>> samples = Samples.of(torch.rand(4, 3), torch.tensor([0, 1, 1, 0]), name="example")
        >>> certificate = certificate_of(torch.nn.Linear(3, 2).eval(), samples)
        >>> file = Path(tempfile.mkdtemp()) / "example.json"
        >>> write_certificate(file, certificate)
        >>> read_certificate(file) == certificate
        True
    """
    try:
        content = read_bytes(Path(path))
        found = _validated(parse(content), "it is no certificate of this version")
        if canonical(found.model_dump()) != content:
            raise CertificateError("its entries are not in the order, or numbers not of the kind, that lipcert writes")
    except CertificateError as error:
        raise CertificateError(f"refused {shown(path, 500)}: {error}") from error
    return found


def _validated(content: dict[str, Any], what: str) -> Certificate:
    try:
        return Certificate.model_validate(content)
    except ValidationError as error:
        listed = "".join(f"\n  - {line}" for line in _explained(error))
        raise CertificateError(f"{what}:{listed}") from error


def _explained(error: ValidationError) -> Iterator[str]:
    """A line for each of the first mistakes. Whatever is from a file in it is escaped and shortened."""
    found = error.errors(include_url=False)
    for detail in found[:_MOST_ERRORS]:
        place = ".".join(shown(key, 40)[1:-1] if isinstance(key, str) else str(key) for key in detail["loc"])
        given = detail.get("input")
        got = f"; got {shown(given, 40)}" if isinstance(given, (str, int, float, bool, type(None))) else ""
        said = detail["msg"].removeprefix("Value error, ")
        yield f"{place or 'the whole'}: {said}{got}"
    if len(found) > _MOST_ERRORS:
        yield f"and {len(found) - _MOST_ERRORS} more"
