"""`verify` accepts every certificate that is made, and finds every lie that a liar seals."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_certificate import ANYTHING, PLACES
from torch import nn

from certificates import (
    CLASSES,
    REAL,
    SHAPES,
    Lie,
    certificate,
    checked,
    content,
    in_units_of_their_own,
    network,
    recount,
    resealed,
    samples,
)
from known_traps import BETWEEN, two_weights
from lies import LIES
from lipcert import CertifiedRadii, lipschitz
from lipcert.certify import (
    Certificate,
    Origin,
    Report,
    Samples,
    certificate_of,
    certify,
    claimed,
    logits,
    make_certificate,
    read_certificate,
    verify,
)
from lipcert.certify.identity import describe_graph, weights_digest
from lipcert.errors import BoundError, CertificateError, ModuleStateError
from lipcert.graph import Graph, trace

WITH_DATA = ["data", "labels", "margins", "radii"]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mlp", {}),
        ("mlp", {"scope": "global"}),
        ("mlp", {"scope": "class", "method": "product"}),
        ("mlp", {"method": "product", "precision": "real"}),
        ("mlp", {"dense_limit": 1}),
        ("mlp", {"dense_limit": 6, "scope": "global"}),
        ("linear", {}),
        ("residual", {}),
        ("residual", {"scope": "global", "method": "product"}),
        ("conv", {}),
        ("mlp", {"local": True}),
        ("mlp", {"local": True, "precision": "real", "method": "product", "scope": "global"}),
        ("mlp", {"local": True, "method": "smallgain", "scaling": "neuron"}),
        ("linear", {"local": True}),
        ("residual", {"local": True, "scope": "class"}),
        ("conv", {"local": True}),
        ("residual", {"method": "smallgain", "scaling": "layer", "scope": "class", "seconds": 1.0}),
        ("row", {"method": "smallgain", "scaling": "neuron", "seconds": 1.0}),
        (
            "row",
            {
                "method": "smallgain",
                "scaling": "layer",
                "scope": "global",
                "dense_limit": 1,
                "local": True,
                "seconds": 1.0,
            },
        ),
        ("row", {"method": "best", "scaling": "layer", "seconds": 1.0}),
    ],
    ids=str,
)
def test_every_certificate_is_accepted(name: str, options: dict[str, Any]) -> None:
    report = checked(certificate(name, **options), name)
    assert report.accepted, report.failed
    assert [c.name for c in report.unchecked] == ["history"]
    without = verify(certificate(name, **options), network(name), norms="none")
    assert without.accepted, without.failed
    with_data = [*WITH_DATA, *(["local radii"] if options.get("local") else [])]
    assert [c.name for c in without.unchecked] == ["model", "norms, by another method", *with_data, "history"]


@pytest.mark.parametrize("options", [{}, {"local": True}, {"local": True, "precision": "real"}], ids=str)
def test_another_machine_rounds_otherwise(options: dict[str, Any]) -> None:
    """Sums in another order change logits, norms and bounds in their last digits; nothing may hang on these."""
    net, data = network("mlp").double(), samples("mlp")
    order = torch.randperm(8, generator=torch.Generator().manual_seed(3))
    c = certificate("mlp", **options)
    flipped = network("mlp")
    with torch.no_grad():  # the same function, with hidden units in another order
        for name in ("weight", "bias"):
            getattr(flipped[0], name).copy_(getattr(flipped[0], name)[order])  # type: ignore[index]
        flipped[2].weight.copy_(flipped[2].weight[:, order])  # type: ignore[index]
    changed = content("mlp", **options)
    changed["model"]["weights_sha256"] = weights_digest(flipped)
    report = verify(Certificate.model_validate(changed), flipped, data)
    assert report.accepted, report.failed
    assert c.model.weights_sha256 != changed["model"]["weights_sha256"]
    assert not verify(c, net, data).accepted  # float64 weights are other weights


def test_rounding_is_not_allowed_for_twice() -> None:
    """float32 finds a tie where real arithmetic finds a margin: no radius that is claimed for float32 is positive."""
    net = two_weights()
    data = Samples.of(torch.tensor([[BETWEEN]]), torch.tensor([1]), name="tie", classes=["a", "b"])
    for local in (False, True):
        made = certificate_of(net, data, epsilons=[1e-6], local=local)
        changed: dict[str, Any] = json.loads(made.model_dump_json())
        assert changed["samples"]["radius"] == [0.0]
        assert changed["samples"]["real_radius"][0] > 0.19
        for share in (0.9e-3, 1e-6):
            claim = [share * changed["samples"]["real_radius"][0]]
            changed["samples"]["radius"] = claim
            if local:
                changed["samples"]["global_radius"] = claim
            right = changed["samples"]["prediction"] == [1] and claim[0] > 1e-6
            changed["certified"][0] |= {"count": int(right), "share": float(right), "verdict": [right]}
            report = verify(Certificate.model_validate(changed), net, data)
            assert [c.name for c in report.failed] == ["radii"], share


@pytest.mark.parametrize("size", [1, 7, 512])
def test_batches_of_any_size_may_have_been_certified(size: int) -> None:
    """Also those whose radii are limited by how far rounding is known."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        net[2].bias.copy_(torch.tensor([1e4, 0.0]))
    x = torch.rand(60, 3) * torch.logspace(-2, 2, 60)[:, None]
    data = Samples.of(x, torch.zeros(60, dtype=torch.int64), name="far", classes=["a", "b"])
    graph = trace(net, (3,))
    result = certify(net, x, data.labels, batch_size=size, local=True)
    assert float(result.radius.min()) > 900
    report = verify(make_certificate(graph, result, data), net, data)
    assert report.accepted, report.failed


@cache
def traced(name: str) -> tuple[nn.Module, Graph]:
    net = network(name)
    return net, trace(net, SHAPES[name])


def once(name: str, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A network that is traced once for all lies about it."""
    net, graph = traced(name)
    monkeypatch.setattr(sys.modules[verify.__module__], "trace", lambda module, shape: graph)
    return net


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The MLP."""
    return once("mlp", monkeypatch)


def judged(content: bytes, folder: Path, net: nn.Module, name: str = "mlp", **options: Any) -> Report:
    (folder / "c.json").write_bytes(content)
    origin = Origin("mlp", {"widths": [8, 6]}, (5,), ("ant", "bee", "cat"))
    return verify(read_certificate(folder / "c.json"), net, samples(name), **{"origin": origin, **options})


@pytest.mark.parametrize("found", LIES, ids=lambda found: found.name)
def test_a_lie_that_is_sealed_is_found(found: Lie, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    net, of = once(found.network, monkeypatch), found.network
    changed = content(found.network, **found.options)
    found.change(changed)
    if found.found_by == "read":
        with pytest.raises(CertificateError):
            judged(resealed(changed), tmp_path, net, of)
        return
    report = judged(resealed(changed), tmp_path, net, of)
    assert not report.accepted
    assert found.found_by in [c.name for c in report.failed], report.failed


def test_there_are_enough_lies() -> None:
    assert len({found.name for found in LIES}) == len(LIES) >= 60


def test_the_certificate_of_another_network() -> None:
    """With hash and graph of the module in hand: the numbers give it away."""
    other = network("mlp", seed=1)
    changed = content(**REAL)
    changed["model"]["weights_sha256"] = weights_digest(other)
    changed["model"]["graph"]["sha256"] = describe_graph(trace(other, (5,)))[1]
    report = verify(Certificate.model_validate(changed), other, samples("mlp"))
    assert {"bound", "margins", "radii"} <= {c.name for c in report.failed}


def test_weights_that_were_changed() -> None:
    net = network("mlp")
    with torch.no_grad():
        net[4].bias[0] = torch.nextafter(net[4].bias[0], torch.tensor(9.0))  # type: ignore[index]
    report = verify(certificate(), net, samples("mlp"))
    assert [c.name for c in report.failed] == ["weights"]
    assert "graph" in [c.name for c in report.unchecked]
    assert "another network" in report["graph"].why


def test_a_constant_that_is_in_no_state_dict() -> None:
    net = network("residual")
    net.shift.mul_(2)  # type: ignore[operator]
    report = verify(certificate("residual"), net)
    assert [c.name for c in report.failed] == ["graph"]


def test_samples_that_were_changed() -> None:
    data = samples("mlp")
    x = torch.cat(list(data.batches(100)))
    y = data.labels.clone()
    y[5] = (y[5] + 1) % 3
    for other in (Samples.of(x, y, name=data.name, split=data.split, classes=data.classes), samples("mlp", 11)):
        report = verify(certificate(), network("mlp"), other)
        assert [c.name for c in report.failed] == ["data"]
        assert {"labels", "margins", "radii"} <= {c.name for c in report.unchecked}


def test_samples_that_were_changed_and_rehashed() -> None:
    data = samples("mlp")
    x = torch.cat(list(data.batches(100)))
    y = data.labels.clone()
    y[5] = (y[5] + 1) % 3
    moved = x.clone()
    moved[2, 0] = 0.5
    for found_by, inputs, labels in (("labels", x, y), ("margins", moved, data.labels)):
        other = Samples.of(inputs, labels, name=data.name, split=data.split, classes=data.classes)
        changed = content()
        changed["data"]["sha256"] = other.sha256
        changed["input"]["smallest"], changed["input"]["largest"] = float(inputs.min()), float(inputs.max())
        report = verify(Certificate.model_validate(changed), network("mlp"), other)
        assert found_by in [c.name for c in report.failed]


def test_norms_that_cannot_be_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claimed, "confirm_norms", lambda *_, **__: {})
    report = checked(certificate())
    assert report.accepted
    assert "3 of 3 norms could not be confirmed" in report["norms, by another method"].why


def test_what_is_of_no_consequence_is_listed_as_not_checked() -> None:
    changed = content()
    changed["created"], changed["versions"]["torch"] = "1999-12-31T23:59:59Z", "0.0"
    report = checked(Certificate.model_validate(changed))
    assert report.accepted
    assert "when and with which versions" in report["history"].why


def test_wrong_use() -> None:
    with pytest.raises(ModuleStateError, match="train mode"):
        verify(certificate(), network("mlp").train())
    with pytest.raises(BoundError, match="probability"):
        verify(certificate(), network("mlp"), failure=2.0)


JUDGED = [p for p in PLACES if p[0] in ("samples", "bound", "certified")]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(JUDGED), value=ANYTHING | st.floats(0, 1e308))
def test_anything_anywhere_is_judged(quick: nn.Module, tmp_path: Path, place: tuple[Any, ...], value: Any) -> None:
    changed = content()
    inside = changed
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    try:
        report = judged(resealed(changed), tmp_path, quick, norms="none")
    except CertificateError:
        return
    if report.accepted and changed != content():  # then it is true, or says how tight a norm is
        recounted = copy.deepcopy(changed)
        recount(recounted)
        assert place[0] == "certified" or (place[0] == "bound" and place[-1] in ("lower", "slack"))
        assert recounted == changed


@pytest.mark.parametrize("local", [False, True])
def test_a_certificate_that_is_older_than_the_second_account_of_rounding(
    local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = in_units_of_their_own()
    x = torch.rand((10, 12), generator=torch.Generator().manual_seed(0))
    data = Samples.of(x, net(x).argmax(1), name="units", classes=CLASSES)
    options: dict[str, Any] = {"method": "smallgain", "scaling": "neuron", "seconds": 1.0, "local": local}
    new = certificate_of(net, data, **options)
    with monkeypatch.context() as before:
        before.setattr(logits.Weighed, "of", lambda *_: None)
        old = certificate_of(net, data, **options)
    for c in (new, old):
        report = verify(c, net, data)
        assert report.accepted, report.failed
    assert sum(new.samples.by_bound) > 1.1 * sum(old.samples.by_bound)
    changed = json.loads(old.model_dump_json())
    changed["samples"]["radius"] = [r * 0.99 for r in changed["samples"]["radius"]]
    if local:
        changed["samples"]["global_radius"] = [r * 0.99 for r in changed["samples"]["global_radius"]]
    failed = verify(Certificate.model_validate(changed), net, data, norms="none").failed
    assert "radii" in {check.name for check in failed}


@pytest.mark.parametrize("precision", ["real", "float32"])
def test_weights_that_cancel(precision: str) -> None:
    """float64's errors as a certificate takes them, of its largest input, are a million times those of the logits."""
    torch.manual_seed(0)
    turns = [nn.Linear(64, 64, bias=False) for _ in range(7)]
    for turn in turns:
        nn.init.orthogonal_(turn.weight)
    net = nn.Sequential(*turns, nn.ReLU(), nn.Linear(64, 3)).eval()
    x = torch.rand(40, 64) * torch.linspace(0.05, 1, 40)[:, None]
    data = Samples.of(x, net(x).argmax(1), name="cancelling")
    bound = lipschitz(net, (64,), scope="pairwise", guarantee="upper")
    result = certify(net, x, data.labels, bound=bound, precision=precision)  # type: ignore[arg-type]
    assert isinstance(result, CertifiedRadii)
    assert verify(make_certificate(trace(net, (64,)), result, data), net, data, norms="none").accepted
    less = replace(result, real=result.real * 0.999, radius=result.radius * 0.999, margin=result.margin * 0.999)
    report = verify(make_certificate(trace(net, (64,)), less, data), net, data, norms="none")
    assert {"margins", "radii"} <= {check.name for check in report.failed}
