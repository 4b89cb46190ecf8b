"""The report: its numbers are those of the certificate and of the attacks, and it asks nothing of anyone."""

from __future__ import annotations

import csv as reader
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lipcert import zoo
from lipcert.attacks import Attacked, read_attacked
from lipcert.certify import read_certificate
from lipcert.certify.canonical import canonical
from lipcert.cli.report import _labels
from lipcert.errors import CertificateError, LipcertError
from lipcert.report import collect, csv, html, markdown
from lipcert.report.svg import Plot
from lipcert.report.tables import radius_text
from lipcert.shown import percent
from lipcert.train import RunFolder
from reports import NAME, entry_of
from runs import cli, refused


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(zoo.folder(NAME).path, tmp_path / "my run"))


def _data(page: str) -> list[dict]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])["runs"]


@pytest.mark.parametrize("attacked", [False, True])
def test_numbers_are_those_of_the_certificate(attacked: bool) -> None:
    entry = entry_of(attacked)
    page = html([entry])
    for claim in entry.certificate.certified:
        assert percent(claim.share) in page
    (data,) = _data(page)
    stated = entry.certificate.samples
    assert data["label"] == list(stated.label)
    assert data["prediction"] == list(stated.prediction)
    assert all(a <= b <= a * (1 + 1e-5) for a, b in zip(data["radius"], stated.radius, strict=True))
    assert (data["attacked"] is None) is not attacked
    if entry.attacked is not None:
        assert percent(entry.attacked.accuracy_at(0.5), up=True) in page
        assert data["attacked"]["distance"][3] is None
        assert "of the first 100 of 360 samples" in page


def test_it_is_one_small_file_that_asks_for_nothing() -> None:
    page = html([entry_of()])
    assert len(page) < 1e6
    assert not re.search(r"https?:|//[a-z]|@import|url\(", re.sub(r"data:image/png;base64,[^\"]*", "", page))
    assert set(re.findall(r'(?:src|href)="([a-z]+:)', page)) == {"data:"}
    assert "default-src 'none'" in page
    assert page.count("<svg") == page.count("</svg>") >= 13
    assert "prefers-color-scheme:dark" in page
    assert "@media print" in page


def test_bounds_are_in_order() -> None:
    rows = entry_of().bounds
    assert [r.title for r in rows] == [
        "steepest pairs of points found",
        "small gain",
        "LipLT",
        "product of the layers' norms",
    ]
    assert [r.proved for r in rows] == [False, True, True, True]
    assert [r.high for r in rows] == sorted(r.high for r in rows)


def test_names_from_files_are_text() -> None:
    """A certificate and a configuration may come from anyone."""
    entry, evil = entry_of(), '"><script>alert(1)</script>'
    model = entry.certificate.model.model_copy(update={"classes": (evil, *entry.classes[1:])})
    page = html(
        [replace(entry, label=evil, toml=evil, certificate=entry.certificate.model_copy(update={"model": model}))]
    )
    assert "<script>alert" not in page
    assert page.count("<script") == 2
    assert _data(page)[0]["classes"][0] == evil


def test_several_runs_stand_beside_each_other() -> None:
    one, other = entry_of(), replace(entry_of(False), label="the other")
    page = html([one, other])
    assert len(_data(page)) == 2
    assert page.count('<section class="run"') == 2
    assert page.count('<div class="readout"') == 2
    text = markdown([one, other])
    assert text.count("\n## ") == 2


def test_markdown() -> None:
    entry = entry_of()
    text = markdown([entry])
    assert "| 0.5 | 68.8" in text
    assert "| DDN | " in text
    assert "rounding included" in text
    assert "`lipcert verify` does" in text
    for assumption in entry.certificate.precision.assumptions:
        assert f"- {assumption}" in text


def test_csv() -> None:
    entry = entry_of()
    rows = list(reader.DictReader(io.StringIO(csv([entry, replace(entry_of(False), label="b")]))))
    assert {r["run"] for r in rows} == {entry.label, "b"}
    mine = [r for r in rows if r["run"] == entry.label]
    shares = [float(r["certified"]) for r in mine]
    assert shares == sorted(shares, reverse=True)
    at = next(r for r in mine if float(r["radius"]) == 0.5)
    assert float(at["certified"]) == pytest.approx(entry.certified_at(0.5), abs=1e-6)
    assert float(at["attacked"]) == pytest.approx(entry.attacked.accuracy_at(0.5), abs=1e-6)  # type: ignore[union-attr]
    assert {r["attacked"] for r in rows if r["run"] == "b"} == {""}


def test_many_classes_are_cut_to_those_that_matter() -> None:
    entry = entry_of(False)
    classes = tuple(f"class {i}" for i in range(40))
    label = tuple(i % 40 for i in range(len(entry.labels)))
    c = entry.certificate
    samples = c.samples.model_copy(update={"label": label, "prediction": label})
    many = c.model_copy(update={"model": c.model.model_copy(update={"classes": classes}), "samples": samples})
    page = html([replace(entry, certificate=many, images=None)])
    assert page.count("<tr data-class=") == 20
    assert "the ten largest and the ten smallest" in page
    assert "Images</h3>" not in page


def test_radii_without_end() -> None:
    """Those of a network that always answers the same."""
    entry = entry_of(False)
    samples = entry.certificate.samples.model_copy(update={"radius": (1e300,) * len(entry.labels)})
    page = html([replace(entry, certificate=entry.certificate.model_copy(update={"samples": samples}))])
    assert "certified beyond 1e6" in page
    assert set(_data(page)[0]["radius"]) == {1e9}
    assert 'max="3.18"' in page  # of the slider


@pytest.mark.parametrize(("radius", "text"), [(36 / 255, "0.1411 (36/255)"), (0.2, "0.2"), (1.58, "1.58")])
def test_radii_in_the_units_people_use(radius: float, text: str) -> None:
    assert radius_text(radius) == text


def test_figures_stay_inside() -> None:
    plot = Plot(2.0, 100.0, "a", "b & c")
    plot.line([(0, 0), (2, 100)], "c0")
    plot.bars([0, 1, 2], [50, 0], "hist")
    text = plot.text("a <title>")
    assert f"{plot.left}.0,{plot.y(0):.1f} {plot.width - plot.right}.0,{plot.top}.0" in text
    assert "b &amp; c" in text
    assert "a &lt;title&gt;" in text
    assert text.count("<rect") == 1


# --- what does not fit ----------------------------------------------------------------------------------------------
def _attacked(run: Path, first: int = 30) -> Attacked:
    arguments = ("--attacks", "ddn", "--steps", "30", "--first", first, "-e", "0.5")
    assert cli("attack", run, *arguments).exit_code == 0
    return read_attacked(run / "attack.safetensors")


def test_attacks_must_be_of_this_certificate(run: Path) -> None:
    folder = RunFolder(run)
    _attacked(run)
    entry = collect(folder, bounds=False)
    assert entry.attacked is not None
    assert entry.total == 360
    assert "--attacks ddn --first 30 -e 0.5 --steps 30" in html([entry])
    for change, said in (
        ({"labels": lambda v: (v + 1) % 10}, "other samples"),
        ({"prediction": lambda v: (v + 1) % 10}, "another network"),
        ({"about": lambda v: {**v, "weights": "0" * 64}}, "another network"),
        ({"distances": lambda v: v * 1.5}, "not that of its adversarial example"),
    ):
        found = _attacked(run)
        for name, alter in change.items():
            setattr(found, name, alter(getattr(found, name)))
        found.write(folder.attack_file)
        with pytest.raises(LipcertError, match=said):
            collect(folder, bounds=False)
        folder.attack_file.unlink()


def test_an_adversarial_example_inside_of_a_radius_is_no_report(run: Path) -> None:
    _attacked(run)
    content = read_certificate(run / "certificate.json").model_dump()
    for name in ("radius", "real_radius"):
        content["samples"][name] = [2 * r for r in content["samples"][name]]
    correct = [p == y for p, y in zip(content["samples"]["prediction"], content["samples"]["label"], strict=True)]
    for claim in content["certified"]:
        verdict = [c and r > claim["epsilon"] for c, r in zip(correct, content["samples"]["radius"], strict=True)]
        claim |= {"verdict": verdict, "count": sum(verdict), "share": sum(verdict) / len(correct)}
    (run / "certificate.json").write_bytes(canonical(content))
    with pytest.raises(CertificateError, match="adversarial example inside"):
        collect(RunFolder(run), bounds=False)


def test_more_attacked_than_certified(run: Path) -> None:
    (run / "certificate.json").rename(run / "kept.json")
    _attacked(run, 40)
    saved = ("--first", "20", "--save", run / "certificate.json")
    assert cli("certify", run, *saved).exit_code == 0
    with pytest.raises(CertificateError, match="certificate of the first 20"):
        collect(RunFolder(run), bounds=False)


@pytest.mark.parametrize("lines", ['{"epoch":1}', '{"epoch":1,"clean":"x","estimated_certified":{},"bound":[0,1]}'])
def test_a_damaged_training_is_left_out(run: Path, lines: str) -> None:
    (run / "metrics.jsonl").write_text(lines + "\n")
    entry = collect(RunFolder(run), bounds=False)
    assert entry.metrics == []
    assert "damaged" in " ".join(entry.notes)
    html([entry])


def test_the_slider_reaches_the_radii_of_interest() -> None:
    entry = entry_of(False)
    samples = entry.certificate.samples.model_copy(update={"radius": (1e-3,) * len(entry.labels)})
    page = html([replace(entry, certificate=entry.certificate.model_copy(update={"samples": samples}))])
    assert 'max="0.795"' in page


def test_nothing_from_a_file_is_a_formula_or_markup() -> None:
    name = "=HYPERLINK(1) <b>x</b> | [red]y"
    entry = replace(entry_of(), label=name)
    assert {row["run"] for row in reader.DictReader(io.StringIO(csv([entry])))} == {f"'{name}"}
    assert "\n## =HYPERLINK(1) \\<b\\>x\\</b\\> \\| \\[red\\]y\n" in markdown([entry])


def test_shares_are_rounded_the_way_that_claims_nothing() -> None:
    entry = entry_of()
    prediction = (
        *entry.certificate.samples.label[:200],
        *[(y + 1) % 10 for y in entry.certificate.samples.label[200:]],
    )
    radius = (*(1.0,) * 200, *(0.0,) * 160)
    samples = entry.certificate.samples.model_copy(update={"radius": radius, "prediction": prediction})
    some = replace(entry, certificate=entry.certificate.model_copy(update={"samples": samples}), attacked=None)
    assert "55.55 %" in html([some])
    assert "55.56" not in html([some])
    assert "| 55.55 % |" in markdown([some])
    assert ",0.555555," in csv([some])


def test_without_the_data_there_are_no_images(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lipcert.errors import DataError

    def missing(*_: object, **__: object) -> None:
        raise DataError("digits are not here")

    monkeypatch.setattr("lipcert.attacks.target.load", missing)
    entry = collect(RunFolder(run), bounds=False)
    assert entry.images is None
    assert "digits are not here" in entry.notes[0]
    assert "digits are not here" in html([entry])
    content = read_certificate(run / "certificate.json").model_dump()
    content["model"]["weights_sha256"] = "0" * 64
    (run / "certificate.json").write_bytes(canonical(content))
    with pytest.raises(CertificateError, match="other weights"):
        collect(RunFolder(run), bounds=False)


# --- the command ----------------------------------------------------------------------------------------------------
def test_the_command(run: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"r.{kind}" for kind in ("html", "md", "csv")]
    shown = cli("report", run, NAME, *(w for f in files for w in ("-o", f)), "--no-bounds")
    assert shown.exit_code == 0, shown.stderr
    assert [line.split("  ")[0] for line in shown.stdout.splitlines()[:3]] == [str(f) for f in files]
    assert "lipcert attack" in shown.stdout
    page = files[0].read_text()
    assert "my run" in page  # as both have the same name
    assert "Lipschitz bounds of the differences" not in page


def test_a_model_of_the_zoo_is_called_by_its_name_there(run: Path) -> None:
    """Its configuration has the name of the recipe that it began with."""
    assert zoo.folder("mnist-4c3f-crm").config().name != "mnist-4c3f-crm"
    assert _labels([Path("mnist-4c3f-crm"), run]) == ["mnist-4c3f-crm", None]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{run}", "-o", "{run}/r.pdf"], "a report ends in .html"),
        (["{run}", "-o", "{run}/no/r.html"], "there is no folder"),
        (["{run}", NAME, "--attack", "{run}/a"], "given 1 times for 2 runs"),
        (["{run}/none"], "no run"),
    ],
)
def test_refusals(arguments: list[str], said: str, run: Path) -> None:
    assert said in refused("report", *(a.format(run=run) for a in arguments))


def test_a_run_without_a_certificate(run: Path) -> None:
    (run / "certificate.json").unlink()
    assert "lipcert certify" in refused("report", run)
