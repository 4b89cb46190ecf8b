"""Train, certify and bound by the command line, and the same by the library."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lipcert import CertifiedRadii, certify, lipschitz
from lipcert.bounds.evidence import Scaling
from lipcert.bounds.lipschitz import FAILURE, SLACK, graph_bound
from lipcert.certify import read_certificate
from lipcert.cli import bound as cli_bound
from lipcert.cli import certify as cli_certify
from lipcert.data import as_float, load
from lipcert.models import build
from lipcert.shown import percent
from lipcert.train import RunFolder
from lipcert.train.checkpoint import load_weights, save_weights
from lipcert.train.evaluate import radius_key
from runs import LOSSES, SMALL, TINY, cli, parsed, refused

CHANGES = [*TINY, *SMALL, LOSSES["ce"], "train.batch_size=64", "train.epochs=5"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits"
    result = cli("train", "digits-mlp-crm", *CHANGES, "--out", out, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == RunFolder(out).summary()
    return out


def test_a_run_with_short_sums(run: Path, tmp_path: Path) -> None:
    short = tmp_path / "short"
    assert cli("fold", run, short, "--terms", "16").exit_code == 0
    more = ["-e", "0.3", "--method", "smallgain", "--seconds", "0.1"]
    found = {at: parsed("certify", at, *more) for at in (run, short)}
    assert found[short]["clean_accuracy"] == found[run]["clean_accuracy"]
    saved = parsed("certify", short, *more, "--first", "50", "--save", tmp_path / "short.json")
    assert (saved["certified"], saved["precision"]) == (True, "float32")
    assert parsed("verify", tmp_path / "short.json", short)["accepted"] is True
    assert cli("verify", tmp_path / "short.json", run).exit_code == 1  # another network
    assert "adds up at most 16 products at a time already" in refused(
        "fold", short, tmp_path / "again", "--terms", "16"
    )
    shorter = [tmp_path / "from-run", tmp_path / "from-short"]
    for at, made in zip((run, short), shorter, strict=True):
        assert cli("fold", at, made, "--terms", "8").exit_code == 0
    assert shorter[0].joinpath("config.toml").read_text() == shorter[1].joinpath("config.toml").read_text()
    one, two = (RunFolder(at).load_model()[0] for at in shorter)
    assert str(one) == str(two)  # the same blocks
    assert all(map(torch.equal, one.parameters(), two.parameters()))
    assert cli("fold", run, tmp_path / "four", "--terms", "100000").exit_code == 0  # four blocks at least
    assert "there is nothing to fold" in cli("fold", short, tmp_path / "again").stderr


def api(run: Path, **options: Any) -> Any:
    model, _ = RunFolder(run).load_model()
    test = load("digits", "test")
    return certify(model, as_float(test.images), test.labels, **options)


def test_a_run_of_lipschitz_layers_from_training_to_its_certificate(tmp_path: Path) -> None:
    """What training suggests certifies it: by LipLT, for float32, it would be refused."""
    model = 'model={name="lipres-s",options={widths=[4,6,8],hidden=16}}'
    changes = ["bound.method=layers", "train.epochs=1", "train.batch_size=128"]
    result = cli("train", "digits-mlp-crm", model, *changes, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.stderr
    *_, certify_it, fold_it = result.stdout.splitlines()
    said = certify_it.split("To certify the run: lipcert ")[1].split()
    assert said[2:] == ["--method", "smallgain", "--precision", "real"]
    assert RunFolder(tmp_path / "run").summary()["bound_estimate"]["method"] == "layers"  # type: ignore[index]
    found = parsed(*said, "-e", "0.1", "--first", "20", "--seconds", "0.1")
    assert (found["method"], found["certified"], found["precision"]) == ("smallgain", True, "real")
    assert fold_it.endswith("lipcert fold it, then certify that with --method smallgain.")
    assert cli("fold", tmp_path / "run", tmp_path / "folded").exit_code == 0
    plain = parsed("certify", tmp_path / "folded", *said[2:4], "-e", "0.1", "--first", "20", "--seconds", "0.1")
    assert plain["precision"] == "float32"
    assert plain["accuracy_at"] == plain["real_accuracy_at"]  # followed by LipLT of the whole, rounding took all
    more = ["--method", "smallgain", "-e", "0.1", "--first", "20", "--seconds", "0.1"]
    deep = parsed("certify", tmp_path / "folded", "--precision", "float64", *more, "--save", tmp_path / "deep.json")
    assert (deep["certified"], deep["precision"]) == (True, "float64")
    assert deep["accuracy_at"] == deep["real_accuracy_at"]
    assert parsed("verify", tmp_path / "deep.json", tmp_path / "folded")["accepted"] is True


def test_what_training_says(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "my run [a] ü"
    result = cli("train", "digits-mlp-crm", *CHANGES, "--out", out)
    assert result.exit_code == 0
    lines = result.stderr.splitlines()
    assert lines[0] == "digits-mlp-crm: 1,210 parameters on cpu"
    assert [line.split()[:2] for line in lines[1:]] == [["epoch", str(i)] for i in range(1, 6)]  # one line each
    assert "digits-mlp-crm: 5 epochs" in result.stdout
    assert f"clean accuracy                {percent(RunFolder(out).summary()['clean_accuracy'])}" in result.stdout  # type: ignore[index]
    assert result.stdout.splitlines()[-1].endswith(f"To certify the run: lipcert certify '{out}'")
    silent = cli("train", "--resume", "--out", run, "--quiet", "--json")
    assert silent.stderr == ""
    assert json.loads(silent.stdout) == RunFolder(run).summary()


def test_resuming_a_finished_run_says_so(run: Path) -> None:
    result = cli("train", "--resume", "--out", run)
    assert result.exit_code == 0
    assert result.stderr == f"The run in {run} is finished: nothing is left to do.\n"
    assert "5 epochs" in result.stdout


def test_certificate(run: Path, tmp_path: Path) -> None:
    document = parsed("certify", run, "-e", "36/255", "-e", "0.25", "--save", tmp_path / "all.json")
    found = api(run)
    assert isinstance(found, CertifiedRadii)
    assert document["certified"] is True
    assert (document["method"], document["scope"], document["guarantee"]) == ("liplt", "pairwise", "upper")
    assert document["precision"] == "float32"
    assert document["units"] == "l2, raw input in [0, 1]"
    assert document["clean_accuracy"] == found.clean_accuracy
    assert document["accuracy_at"] == {
        radius_key(36 / 255): found.certified_accuracy(36 / 255),
        "0.25": found.certified_accuracy(0.25),
    }
    assert 0 < document["accuracy_at"]["0.25"] < document["accuracy_at"][radius_key(36 / 255)]
    off = found.bound.value[found.bound.value > 0]
    assert document["bound"]["low"] == pytest.approx(float(off.min()), rel=1e-12)
    assert document["bound"]["high"] == pytest.approx(float(off.max()), rel=1e-12)
    assert document["mean_radius_of_correct"] == pytest.approx(float(found.radius[found.correct].mean()))
    test = load("digits", "test")
    expected = {"name": "digits", "split": "test", "samples": 360, "of": 360, "sha256": test.fingerprint}
    assert document["data"] == expected
    saved = read_certificate(tmp_path / "all.json")
    assert {radius_key(a.epsilon): a.share for a in saved.certified} == document["accuracy_at"]
    assert saved.samples.label == tuple(test.labels.tolist())
    assert saved.samples.prediction == tuple(found.prediction.tolist())
    torch.testing.assert_close(torch.tensor(saved.samples.radius, dtype=torch.float64), found.radius)


def test_default_radii_are_the_run_s_and_other_bounds_are_worse(run: Path) -> None:
    tight = parsed("certify", run)
    assert list(tight["accuracy_at"]) == ["0.25", "0.5", "0.75"]
    for options in (["--method", "product"], ["--scope", "global"], ["--scope", "class"]):
        loose = parsed("certify", run, *options)
        assert loose["mean_radius_of_correct"] < tight["mean_radius_of_correct"]
    assert parsed("certify", run, "--split", "train")["data"]["samples"] == 1437


def test_an_estimate_is_no_certificate(run: Path) -> None:
    document = parsed("certify", run, "--guarantee", "estimate", "-e", "0.25")
    assert document["certified"] is False
    assert document["guarantee"] == "estimate"
    shown = cli("certify", run, "--guarantee", "estimate", "-e", "0.25").stdout
    assert "Not a certificate: the bound is an estimate from below." in shown
    assert "estimated at 0.25" in shown
    assert "certified at" not in shown
    assert "≤" not in shown
    proved = cli("certify", run, "-e", "0.25").stdout
    assert "certified at 0.25" in proved
    assert "Upper bounds, proved, for the network as float32 executes it" in proved
    assert "≤" in proved
    assert "estimate" not in proved


@pytest.mark.parametrize("scope", ["global", "class", "pairwise"])
@pytest.mark.parametrize("guarantee", ["upper", "estimate"])
def test_bounds(run: Path, scope: str, guarantee: str) -> None:
    document = parsed("bound", run, "--scope", scope, "--guarantee", guarantee)
    model, _ = RunFolder(run).load_model()
    assert [found["method"] for found in document] == ["product", "liplt"]
    for found in document:
        expected = lipschitz(model, (1, 8, 8), method=found["method"], scope=scope, guarantee=guarantee)  # type: ignore[arg-type]
        assert (found["scope"], found["guarantee"]) == (scope, guarantee)
        torch.testing.assert_close(torch.tensor(found["value"], dtype=torch.float64), expected.value)


@pytest.mark.parametrize("scaling", ["layer", "neuron"])
def test_small_gain(run: Path, tmp_path: Path, scaling: str) -> None:
    options = ["--method", "smallgain", "--scaling", scaling, "--seconds", "5", "--scope", "pairwise"]
    (bound,) = parsed("bound", run, *options, "--guarantee", "upper")
    model, _ = RunFolder(run).load_model()
    liplt = lipschitz(model, (1, 8, 8), scope="pairwise", guarantee="upper").value
    value = torch.tensor(bound["value"], dtype=torch.float64)
    assert (bound["method"], bound["guarantee"]) == ("smallgain", "upper")
    assert bool((value <= liplt).all())
    assert float(value.sum()) < 0.99 * float(liplt.sum())
    document = parsed("certify", run, *options, "--save", tmp_path / "gain.json")
    saved = read_certificate(tmp_path / "gain.json")
    assert document["method"] == saved.bound.method == "smallgain"
    assert saved.bound.smallgain is not None
    assert saved.bound.smallgain.kind == scaling
    assert document["bound"]["high"] == pytest.approx(float(value.max()), rel=1e-6)


def test_a_search_starts_from_what_training_ended_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "run"
    changes = [*TINY, *SMALL, "bound.method=smallgain", "train.epochs=1"]
    assert cli("train", "digits-mlp-crm", *changes, "--out", out).exit_code == 0
    trained = RunFolder(out).scaling()
    assert trained is not None
    assert (trained.kind, [tuple(d.shape) for d in trained.weights]) == ("channel", [(16,)])
    seen: list[Scaling | None] = []

    def spy(*args: Any, **options: Any) -> Any:
        seen.append(options["start"])
        return graph_bound(*args, **options)

    for module in (cli_certify, cli_bound):
        monkeypatch.setattr(module, "graph_bound", spy)
    short = ["--method", "smallgain", "--seconds", "0.1"]
    first = ["--guarantee", "estimate", "--first", "5"]
    for arguments in (["certify", out, *first, *short], ["bound", out, *short], ["certify", out, *first],
                      ["certify", out, *first, *short, "--scaling", "layer"]):  # fmt: skip
        assert cli(*arguments).exit_code == 0, arguments
    assert [s is None for s in seen] == [False, False, True, True]
    assert seen[0] is not None
    assert all(torch.equal(a, b) for a, b in zip(seen[0].weights, trained.weights, strict=True))
    file = out / "scaling.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-8])
    assert "scaling.safetensors is damaged" in refused("certify", out, *first, *short)
    file.write_bytes(content.replace(b'"channel"', b'"chennal"'))
    assert "delete it" in refused("bound", out, *short)
    RunFolder(out).save_scaling(Scaling("channel", (torch.ones(7),)), RunFolder(out).config())
    for arguments in (["certify", out, *first, *short], ["bound", out, *short]):
        assert "scaling.safetensors does not fit this network" in refused(*arguments)
    file.unlink()
    assert RunFolder(out).scaling() is None


def test_pair_by_pair(run: Path, tmp_path: Path) -> None:
    """No radius is smaller, some are larger, and all of it can be verified."""
    small = ["--method", "smallgain", "--seconds", "2", "--first", "50", "-e", "0.1", "--save"]
    assert cli("certify", run, *small, tmp_path / "first.json").exit_code == 0
    assert cli("certify", run, *small, tmp_path / "further.json", "--refine", "4").exit_code == 0
    first, further = (read_certificate(tmp_path / f"{name}.json") for name in ("first", "further"))
    assert len(further.bound.further) > 1
    before, now = (torch.tensor(c.bound.value) for c in (first, further))
    assert bool((now <= before * (1 + 1e-3)).all())
    assert bool((now < before * (1 - 1e-3)).any())
    assert sum(further.samples.radius) > sum(first.samples.radius)
    verified = cli("verify", tmp_path / "further.json", run)
    assert verified.exit_code == 0, verified.output
    assert f"nor those of {1 + len(further.bound.further)} scaled maps" in " ".join(verified.stdout.split())
    for command in ("bound", "certify"):
        assert "--refine is for --method smallgain" in refused(command, run, "--refine", "20", "--method", "liplt")
        said = refused(command, run, *small[:4], "--scope", "global", "--refine", "20")
        assert "--scope pairwise or class" in said
    rough = parsed("bound", run, *small[:4], "--scope", "pairwise", "--refine", "1")
    assert rough[0]["guarantee"] == "estimate"


def test_only_the_first_samples(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "first.json"
    found = parsed("certify", run, "--first", "40", "-e", "0.25", "--save", file)
    assert (found["data"]["samples"], found["data"]["of"]) == (40, 360)
    assert found["data"]["sha256"] == load("digits", "test").subset(slice(40)).fingerprint
    expected = api(run)
    share = float((expected.correct & (expected.radius > 0.25))[:40].double().mean())
    assert found["accuracy_at"]["0.25"] == share
    assert "the first 40 of 360 samples" in cli("certify", run, "--first", "40").stdout
    assert "the first 40 of 360 samples" in cli("verify", file, run).stdout
    report = parsed("verify", file, run)
    assert report["accepted"] is True
    assert report["claims"]["data"]["of"] == 360
    assert parsed("verify", file, run, "--no-data")["accepted"] is True
    assert parsed("certify", run, "--first", "1000")["data"]["samples"] == 360
    assert cli("certify", run, "--first", "0").exit_code == 2


def test_the_best_of_all(run: Path, tmp_path: Path) -> None:
    options = ["--method", "best", "--seconds", "5", "--scope", "pairwise"]
    listed = parsed("bound", run, *options, "--guarantee", "upper")
    assert [b["method"] for b in listed] == ["product", "liplt", "smallgain"]
    assert [b["best"] for b in listed] == [False, False, True]
    assert "smallgain (best)" in cli("bound", run, *options).stdout
    assert cli("bound", run, "--compare", "--method", "best").exit_code == 1
    file = tmp_path / "best.json"
    found = parsed("certify", run, *options, "--save", file)
    assert found["method"] == "smallgain"
    assert [a["method"] for a in found["attempts"]] == ["product", "liplt", "smallgain"]
    assert found["bound"]["high"] == found["attempts"][2]["high"] < found["attempts"][1]["high"]
    assert parsed("verify", file, run)["accepted"] is True
    assert "The best of product (" in cli("certify", run, *options).stdout


@pytest.mark.parametrize("given", [["--scaling", "each"], ["--seconds", "0"], ["--seconds", "soon"]])
def test_options_of_small_gain_that_are_none(run: Path, given: list[str]) -> None:
    assert cli("bound", run, "--method", "smallgain", *given).exit_code == 2


def test_a_bracket(run: Path) -> None:
    found = parsed("bound", run, "--compare", "--guarantee", "upper")
    assert [b.get("method") for b in found] == ["product", "liplt", "smallgain", None]
    values = [b["value"] for b in found]
    assert found[-1]["guarantee"] == "lower"
    assert values[0] > values[1] > values[2] > values[3] > 0
    shown = cli("bound", run, "--compare").stdout
    assert "points found" in shown
    assert "≥" in shown


def test_bounds_for_people(run: Path) -> None:
    shown = cli("bound", run, "--method", "liplt").stdout.splitlines()
    model, _ = RunFolder(run).load_model()
    value = float(lipschitz(model, (1, 8, 8)))
    assert shown[0].strip() == "ℓ2 Lipschitz constant, global"
    assert shown[1].split() == ["method", "seconds"]
    assert shown[2].split()[:4] == ["liplt", "L", "≈", f"{value:.6g}"]
    assert shown[3] == "Estimates from below, not guarantees. For a proof: --guarantee upper"
    proved = cli("bound", run, "--scope", "class", "--guarantee", "upper").stdout
    assert proved.splitlines()[1].split() == ["method", "seconds", "slack"]
    assert proved.splitlines()[-1] == "Upper bounds for the network in real arithmetic: proved."
    assert "≈" not in proved
    assert "Estimates" not in proved


def test_printed_upper_bounds_are_not_below_the_proved_ones(run: Path) -> None:
    for digits, command in ((5, "certify"), (6, "bound")):
        arguments = [command, run, "--scope", "pairwise", "--guarantee", "upper"]
        document = parsed(*arguments)
        if command == "certify":
            proved = [(document["bound"]["low"], document["bound"]["high"])]
        else:
            values = [[v for row in found["value"] for v in row if v] for found in document]
            proved = [(min(row), max(row)) for row in values]
        shown = re.findall(r"L ≤ (\S+) … ([\d.e-]+)", cli(*arguments).stdout)
        for texts, numbers in zip(shown, proved, strict=True):
            for above, below in zip(map(float, texts), numbers, strict=True):
                assert below <= above <= below * (1 + 10.0 ** (1 - digits))


def test_blocks_too_large_to_form(run: Path) -> None:
    found = parsed("bound", run, "--method", "liplt", "--guarantee", "upper", "--dense-limit", "1")[0]
    assert found["failure_probability"] == FAILURE
    assert found["norms"] == ["chebyshev"]
    exact = parsed("bound", run, "--method", "liplt", "--guarantee", "upper")[0]
    assert exact["failure_probability"] == 0
    assert found["value"] == pytest.approx(exact["value"], rel=5 * SLACK)
    for command in ("bound", "certify"):
        shown = cli(command, run, "--guarantee", "upper", "--dense-limit", "1").stdout
        assert "proved, except with probability 1e-12" in shown
    tight = parsed("certify", run, "--dense-limit", "1", "--slack", "1e-4", "--failure", "1e-9")
    assert tight["failure_probability"] == 1e-9
    assert tight["relative_slack"] < 1e-3


def test_a_link_to_save_to(run: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "folder" / "all.json")
    document = parsed("certify", run, "--save", tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    saved = read_certificate(tmp_path / "folder" / "all.json")
    assert {radius_key(a.epsilon): a.share for a in saved.certified} == document["accuracy_at"]
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["all.json"]


@pytest.mark.parametrize("content", ["{}", '{"name": 3}', "[1]", "{"])
def test_a_damaged_summary_is_made_again(run: Path, content: str) -> None:
    before = RunFolder(run).summary()
    (run / "summary.json").write_text(content)
    assert parsed("train", "--resume", "--out", run) == before == RunFolder(run).summary()


def test_bound_of_a_model_by_name(run: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = build("mlp", input_shape=(3, 2, 2), num_classes=4).eval()
    arguments = ["bound", "--model", "mlp", "--input", "3x2x2", "--classes", "4", "--method", "liplt"]
    assert parsed(*arguments)[0]["value"] == pytest.approx(float(lipschitz(net, (3, 2, 2))))
    torch.manual_seed(5)
    other = build("mlp", input_shape=(3, 2, 2), num_classes=4).eval()
    save_weights(tmp_path / "w.safetensors", other)
    found = parsed(*arguments, "--weights", tmp_path / "w.safetensors")[0]["value"]
    assert found == pytest.approx(float(lipschitz(other, (3, 2, 2))))
    assert found != pytest.approx(float(lipschitz(net, (3, 2, 2))))
    load_weights(tmp_path / "w.safetensors", net)


def test_a_network_of_zeros_has_a_bound(tmp_path: Path) -> None:
    net = build("mlp", input_shape=(4,), num_classes=3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    save_weights(tmp_path / "zero.safetensors", net)
    for scope in ("global", "class", "pairwise"):
        arguments = ["bound", "--model", "mlp", "--input", "4", "--classes", "3", "--scope", scope]
        result = cli(*arguments, "--weights", tmp_path / "zero.safetensors", "--guarantee", "upper")
        assert result.exit_code == 0, result.stderr


def test_local_radii_on_the_command_line(run: Path, tmp_path: Path) -> None:
    found = parsed("certify", run, "--local", "-e", "0.05", "-e", "0.2")
    expected = api(run, local=True)
    assert found["local"] is True
    assert found["accuracy_at"] == {radius_key(e): expected.certified_accuracy(e) for e in (0.05, 0.2)}
    alone = api(run)
    assert found["global_accuracy_at"] == {radius_key(e): alone.certified_accuracy(e) for e in (0.05, 0.2)}
    assert expected.certified_accuracy(0.2) > alone.certified_accuracy(0.2)
    shown = cli("certify", run, "--local", "-e", "0.05")
    assert "by the global bound" in shown.stdout
    assert "Local bounds were added" in shown.stdout
    for flag in ("--local", "--local-at"):
        refused = cli("certify", run, flag, "--guarantee", "estimate")
        assert refused.exit_code == 1
        assert flag in refused.stderr
    assert "give one of them" in cli("certify", run, "--local", "--local-at").stderr


def test_local_radii_at_the_radii_asked_for(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "at.json"
    found = parsed("certify", run, "--local-at", "-e", "0.05", "-e", "0.2", "--save", file)
    assert found["local_at"] == [0.05, 0.2]
    expected = api(run, local=[0.05, 0.2])
    assert found["accuracy_at"] == {radius_key(e): expected.certified_accuracy(e) for e in (0.05, 0.2)}
    assert found["accuracy_at"]["0.2"] > found["global_accuracy_at"]["0.2"]
    assert parsed("verify", file, run)["accepted"] is True
    assert "at these radii only" in cli("certify", run, "--local-at", "-e", "0.2").stdout


def test_a_certificate_of_local_radii(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "local.json"
    found = parsed("certify", run, "--local", "-e", "0.2", "--save", file)
    report = parsed("verify", file, run)
    assert report["accepted"] is True
    assert {c["name"]: c["status"] for c in report["checks"]}["local radii"] == "passed"
    assert report["claims"]["accuracy_at"] == found["accuracy_at"]
    alone = parsed("certify", run, "-e", "0.2", "--save", file)
    report = parsed("verify", file, run)
    assert "local radii" not in {c["name"] for c in report["checks"]}
    assert report["claims"]["accuracy_at"] == alone["accuracy_at"]
