"""Certificate files: made, written, read, and refused when they are not byte for byte what was written."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from certificates import CLASSES, Lie, certificate, content, network, resealed, samples, stale
from lies import LIES
from lipcert.certify import (
    Certificate,
    Samples,
    certificate_of,
    certify,
    make_certificate,
    read_certificate,
    schema,
    write_certificate,
)
from lipcert.certify.canonical import MAX_BYTES, canonical, shown
from lipcert.certify.identity import describe_graph, weights_digest
from lipcert.data import Dataset, as_float
from lipcert.errors import CertificateError, ShapeError
from lipcert.graph import trace

ORIGINAL = canonical(certificate().model_dump())


def read(content: bytes, folder: Path) -> Certificate:
    (folder / "c.json").write_bytes(content)
    return read_certificate(folder / "c.json")


def refused(content: bytes, folder: Path) -> str:
    with pytest.raises(CertificateError) as caught:
        read(content, folder)
    said = str(caught.value)
    assert said.startswith(f"refused '{folder}/c.json': ")
    assert len(said) < 3000
    assert all(c.isprintable() or c == "\n" for c in said)
    return said


# --- the file ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["mlp", "residual", "conv", "linear"])
def test_what_is_written_is_read(name: str, tmp_path: Path) -> None:
    made = certificate(name)
    write_certificate(tmp_path / "c.json", made)
    assert read_certificate(tmp_path / "c.json") == made
    text = (tmp_path / "c.json").read_bytes()
    assert text.isascii()
    lines = text.splitlines(keepends=True)  # head -n -2 | sha256sum
    assert json.loads(text)["sha256"] == hashlib.sha256(b"".join(lines[:-2])).hexdigest()
    write_certificate(tmp_path / "c.json", read_certificate(tmp_path / "c.json"))
    assert (tmp_path / "c.json").read_bytes() == text
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]
    (tmp_path / "link").symlink_to("c.json")
    assert read_certificate(tmp_path / "link") == made


def test_what_stands_in_it() -> None:
    net, data = network("mlp"), samples("mlp")
    x = torch.cat(list(data.batches(100)))
    result, c = certify(net, x, data.labels), certificate()
    assert c.model.weights_sha256 == weights_digest(net)
    assert (c.model.name, c.model.options, c.model.dtype) == ("mlp", {"widths": [8, 6]}, "float32")
    assert c.model.classes == CLASSES
    assert [n.kind for n in c.model.graph.nodes] == ["input", *["affine", "elementwise"] * 2, "affine"]
    assert (c.input.shape, c.input.norm, c.input.smallest) == ((5,), "l2", float(x.min()))
    assert (c.bound.method, c.bound.scope, c.bound.guarantee, c.bound.failure) == ("liplt", "pairwise", "upper", 0.0)
    torch.testing.assert_close(torch.tensor(c.bound.value, dtype=torch.float64), result.bound.value)
    assert len(c.bound.norms) == 3  # from input to each activation, and from the first to the second
    assert c.precision.arithmetic == "float32"
    assert (c.data.name, c.data.split, c.data.samples) == ("made [up]", "test", 12)
    assert c.samples.label == tuple(data.labels.tolist())
    assert c.samples.prediction == tuple(result.prediction.tolist())
    torch.testing.assert_close(torch.tensor(c.samples.radius, dtype=torch.float64), result.radius)
    torch.testing.assert_close(torch.tensor(c.samples.real_radius, dtype=torch.float64), result.real)
    assert [a.epsilon for a in c.certified] == [0.01, 0.02, 0.1]
    assert [a.share for a in c.certified] == [result.certified_accuracy(e) for e in (0.01, 0.02, 0.1)]  # type: ignore[attr-defined]
    assert 0 < c.certified[2].count < c.certified[0].count < c.clean.count < 12
    assert certificate("mlp", precision="real").samples.radius == c.samples.real_radius


def test_a_certificate_can_be_printed() -> None:
    long = certificate("mlp").certified[0].model_copy(update={"verdict": (True,) * 99})
    assert repr(long).endswith("verdict=<99 items>)")
    assert "shape=(5,)" in repr(certificate("mlp"))


def test_normalisation_and_data_sets() -> None:
    images = torch.randint(256, (6, 2, 6, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    images[0, 0, 0, :2] = torch.tensor([0, 255])
    dots = Dataset("dots", "test", images, torch.tensor([0, 1, 2, 0, 1, 2]), CLASSES)
    c = certificate_of(network("conv"), Samples.from_dataset(dots), epsilons=[0.1, 0.1])
    (layer,) = c.input.normalization
    assert layer.place == "0"
    assert layer.mean == pytest.approx((0.4, 0.5))
    assert layer.std == pytest.approx((0.2, 0.3))
    assert (c.data.name, c.data.split, c.data.sha256) == ("dots", "test", dots.fingerprint)
    assert (c.input.smallest, c.input.largest) == (0.0, 1.0)
    assert torch.equal(torch.cat(list(Samples.from_dataset(dots).batches(4))), as_float(images))


def test_the_published_schema_is_the_models() -> None:
    published = Path(schema.__file__).with_name("certificate.schema.json").read_text(encoding="utf-8")
    assert json.loads(published) == json.loads(schema.json_schema())


def test_what_makes_no_certificate() -> None:
    net, data = network("mlp"), samples("mlp")
    graph, x = trace(net, (5,)), torch.cat(list(data.batches(100)))
    with pytest.raises(CertificateError, match="an estimate proves nothing"):
        make_certificate(graph, certify(net, x, data.labels, guarantee="estimate"), data)
    with pytest.raises(CertificateError, match="labels differ"):
        make_certificate(graph, certify(net, x, data.labels.flip(0)), data)
    with pytest.raises(CertificateError, match="labels differ"):
        make_certificate(graph, certify(net, x), data)
    two = Samples.of(x, data.labels.clamp_max(1), classes=("a", "b"))
    with pytest.raises(CertificateError, match="2 classes"):
        make_certificate(graph, certify(net, x, two.labels), two)
    bad = x.clone()
    bad[3, 1] = float("nan")
    with pytest.raises(CertificateError, match="not finite"):
        certificate_of(net, Samples.of(bad, data.labels, classes=CLASSES))
    with pytest.raises(CertificateError, match=r"data\.name: .*cannot be printed"):
        certificate_of(net, Samples.of(x, data.labels, name="a\nb", classes=CLASSES))
    with pytest.raises(CertificateError, match="certified"):
        certificate_of(net, data, epsilons=[-0.5])
    for x_, y_ in ((x[:0], data.labels[:0]), (x, data.labels[:3]), (x.long(), data.labels), (x, data.labels.double())):
        with pytest.raises(ShapeError, match="samples are"):
            Samples.of(x_, y_)


# --- what a network is recognised by ----------------------------------------------------------------------------------
def test_a_graph_s_hash_is_of_what_it_computes() -> None:
    class Scaled(nn.Module):
        def __init__(self, slope: float, factor: float, shift: float) -> None:
            super().__init__()
            self.first, self.slope, self.factor = nn.Linear(3, 3), slope, factor
            self.register_buffer("shift", torch.tensor(shift), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.leaky_relu(self.first(x), self.slope) * self.factor + self.shift

    def sha(*numbers: float) -> str:
        return describe_graph(trace(Scaled(*numbers).eval(), (3,)))[1]

    first = sha(0.1, 2.0, 0.5)
    assert sha(0.1, 2.0, 0.5) == first  # other weights, same network
    assert len({first, sha(0.2, 2.0, 0.5), sha(0.1, 3.0, 0.5), sha(0.1, 2.0, 0.25)}) == 4
    assert "0x" not in json.dumps(describe_graph(trace(network("residual"), (5,)))[0])


def test_a_network_is_the_same_in_another_process() -> None:
    code = (
        "from certificates import network; from lipcert.graph import trace; from lipcert.certify.identity import *; "
        "print(*[describe_graph(trace(network(n), s))[1] + weights_digest(network(n)) "
        "for n, s in (('residual', (5,)), ('conv', (2, 6, 6)))])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    expected = [certificate(n).model for n in ("residual", "conv")]
    assert done.stdout.split() == [m.graph.sha256 + m.weights_sha256 for m in expected]


# --- changes that nobody sealed ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("found", LIES, ids=lambda found: found.name)
def test_a_change_breaks_the_checksum(found: Lie, tmp_path: Path) -> None:
    changed = content(found.network, **found.options)
    original = resealed(changed)
    found.change(changed)
    assert resealed(changed) != original
    assert "checksum" in (said := refused(stale(changed, original), tmp_path)) or "an estimate" in said


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(ORIGINAL) - 1), st.integers(1, 255))
def test_a_byte_changed(tmp_path: Path, place: int, difference: int) -> None:
    changed = bytearray(ORIGINAL)
    changed[place] ^= difference
    refused(bytes(changed), tmp_path)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, len(ORIGINAL) - 1), st.binary(min_size=0, max_size=3))
def test_bytes_cut_off_or_put_in(tmp_path: Path, place: int, more: bytes) -> None:
    refused(ORIGINAL[:place], tmp_path)
    refused(ORIGINAL[:place] + ORIGINAL[place + 1 :], tmp_path)
    if more:
        refused(ORIGINAL[:place] + more + ORIGINAL[place:], tmp_path)


DEEP = 100_000
FORMS: dict[str, tuple[bytes, str]] = {
    "appended": (ORIGINAL + b"\n", "byte for byte"),
    "appended twice": (ORIGINAL + ORIGINAL, "not JSON"),
    "spaces": (ORIGINAL.replace(b',"', b', "'), "byte for byte"),
    "carriage returns": (ORIGINAL.replace(b"\n", b"\r\n"), "byte for byte"),
    "indented": (json.dumps(json.loads(ORIGINAL), indent=1).encode(), "byte for byte"),
    "byte order mark": (b"\xef\xbb\xbf" + ORIGINAL, "byte order mark"),
    "no UTF-8": (ORIGINAL.replace(b"ant", b"\xff\xfe"), "not UTF-8"),
    "UTF-16": (ORIGINAL.decode().encode("utf-16"), "not UTF-8"),
    "a null": (ORIGINAL.replace(b"ant", b"a\0t"), "not JSON"),
    "key twice": (ORIGINAL.replace(b'"version":1,\n', b'"version":1,\n"version":1,\n'), "'version' is there twice"),
    "inner key twice": (ORIGINAL.replace(b'"dtype":', b'"dtype":"x","dtype":'), "'dtype' is there twice"),
    "NaN": (ORIGINAL.replace(b'"slack":', b'"slack":NaN,"x":'), "NaN is no number"),
    "Infinity": (ORIGINAL.replace(b'"slack":', b'"slack":-Infinity,"x":'), "-Infinity is no number"),
    "1e999": (ORIGINAL.replace(b'"slack":', b'"slack":1e999,"x":'), "'1e999' is too large"),
    "a huge integer": (ORIGINAL.replace(b'"slack":', b'"slack":' + b"9" * 10**5 + b',"x":'), "too large, or too long"),
    "an integer of 65 bits": (ORIGINAL.replace(b'"slack":', b'"slack":36893488147419103232,"x":'), "too large"),
    "a long number": (ORIGINAL.replace(b'"slack":', b'"slack":0.' + b"1" * 10**5 + b',"x":'), "too large, or too long"),
    "deep lists": (b"[" * DEEP + b"]" * DEEP, "nested more than"),
    "deep objects": (b'{"a":' * DEEP + b"1" + b"}" * DEEP, "nested more than"),
    "deep and cut off": (b"[" * DEEP, "nested more than"),
    "many lists": (b"[" + b"[]," * 2**20 + b"1]", "too many"),
    "many strings": (b"[" + b'"",' * 2**20 + b"1]", "too many"),
    "quotes": (b'"' + b'\\"' * 10**6, "a string has no end"),
    "escapes": (b'"' + b"\\n" * 10**6 + b'"', "too many escapes"),
    "many keys": (b"{" + b",".join(b'"%d":1' % i for i in range(1000)) + b"}", "1,000 keys"),
    "many numbers": (b"[" + b"1," * 10**5 + b"1]", "not a JSON object"),
    "nothing": (b"", "not JSON"),
    "an object": (b"{}", "byte for byte"),
    "a string": (b'"lipcert-certificate"', "not a JSON object"),
    "null": (b"null", "not a JSON object"),
    "an empty one, sealed": (canonical({}), "format: Field required"),
}


@pytest.mark.parametrize("form", FORMS)
def test_other_forms(form: str, tmp_path: Path) -> None:
    began = time.monotonic()
    content, says = FORMS[form]
    assert says in refused(content, tmp_path)
    assert time.monotonic() - began < 5


def test_keys_in_another_order(tmp_path: Path) -> None:
    changed = content()
    order = list(changed)
    swapped = {k: changed[k] for k in (order[1], order[0], *order[2:])}
    assert "order" in refused(resealed(swapped), tmp_path)
    body = json.dumps(changed["data"], separators=(",", ":"), sort_keys=True)
    other = json.dumps(dict(sorted(changed["data"].items(), reverse=True)), separators=(",", ":"))
    assert "byte for byte" in refused(ORIGINAL.replace(body.encode(), other.encode()), tmp_path)


# --- files that are none ----------------------------------------------------------------------------------------------
def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "to a pipe").symlink_to(tmp_path / "pipe")
    said = {
        "pipe": "not an ordinary file",
        "to a pipe": "not an ordinary file",
        "lost": "there is no file",
        "loop": "cannot read",
        "nothing": "there is no file",
        "x" * 300: "cannot read",
        "a\0b": "cannot read",
        "pipe/x": "cannot read",
    }
    for name, says in said.items():
        with pytest.raises(CertificateError, match=says):
            read_certificate(tmp_path / name)
    for path in (tmp_path / "folder", "/dev/zero", ""):
        with pytest.raises(CertificateError, match=r"not an ordinary file|cannot read|Is a directory"):
            read_certificate(path)


def test_a_file_of_a_gibibyte(tmp_path: Path) -> None:
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(2**30)  # a hole: nothing is written
    began = time.monotonic()
    with pytest.raises(CertificateError, match="1,073,741,824 bytes"):
        read_certificate(tmp_path / "huge.json")
    assert time.monotonic() - began < 1
    with pytest.raises(CertificateError, match="neither written nor read"):
        canonical({"a": "x" * MAX_BYTES})


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(CertificateError, match="No space left on device"):
        write_certificate(tmp_path / "c.json", certificate())
    assert list(tmp_path.iterdir()) == []


# --- anything, anywhere -----------------------------------------------------------------------------------------------
def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in it, inner ones included."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [p for k, v in inner for p in leaves(v, (*path, k))]


PLACES = [p for p in leaves(content()) if not (len(p) > 2 and isinstance(p[2], int) and p[2] > 1)]
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["../../etc/passwd", "[red]x[/red]", "\x1b[31m", "\u202eevil", "\ud800", "a" * 1000]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(PLACES), ANYTHING)
def test_anything_anywhere(tmp_path: Path, place: tuple[Any, ...], value: Any) -> None:
    """Sealed by a liar: it is refused with a clear message, or it is a certificate, of which verify is to judge."""
    changed = content()
    inside = changed
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    file = resealed(changed)
    try:
        assert canonical(read(file, tmp_path).model_dump()) == file
    except CertificateError:
        refused(file, tmp_path)


def test_texts_from_a_file_in_messages() -> None:
    assert shown("\x1b[31m\u202e\n") == "'\\x1b[31m\\u202e\\n'"
    assert len(shown("x" * 10**6)) < 100
