"""``lipcert verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from lipcert import zoo
from lipcert.bounds.lipschitz import FAILURE
from lipcert.certify import Certificate, Check, Report, Samples, read_certificate
from lipcert.certify import verify as verify_certificate
from lipcert.certify.recompute import CONFIRM_LIMIT
from lipcert.cli.certify import origin_of
from lipcert.cli.common import (
    DeviceOption,
    JsonOption,
    console,
    emit,
    find_device,
    guarded,
    run_of,
    say,
    shipped,
    table,
)
from lipcert.data import load
from lipcert.errors import CertificateError
from lipcert.shown import percent, radius
from lipcert.train.evaluate import radius_key

__all__ = ["verify"]

_FILE = Check("file", "passed", "byte for byte what lipcert writes, with its checksum; that is no signature")
_COLOURS = {"passed": "green", "failed": "bold red", "not checked": "yellow"}


def _document(certificate: Path, run: Path, report: Report, c: Certificate, total: int) -> dict[str, Any]:
    return {
        "certificate": str(certificate),
        "run": str(run),
        "accepted": report.accepted,
        "checks": [{"name": check.name, "status": check.status, "why": check.why} for check in report.checks],
        "claims": {
            "data": {"name": c.data.name, "split": c.data.split, "samples": c.data.samples, "of": total},
            "precision": c.precision.arithmetic,
            "failure_probability": c.bound.failure,
            "clean_accuracy": c.clean.share,
            "accuracy_at": {radius_key(a.epsilon): a.share for a in c.certified},
            "local": c.samples.global_radius is not None,
        },
    }


def _show(report: Report, c: Certificate, total: int) -> None:
    shown = table("check", "result", "why")
    for column in shown.columns:
        column.justify = "left"
    for check in report.checks:
        colour = _COLOURS[check.status]
        shown.add_row(check.name, f"[{colour}]{check.status}[/{colour}]", escape(check.why))
    console.print(shown)
    if not report.accepted:
        console.print(
            f"[bold red]Refused:[/bold red] {', '.join(check.name for check in report.failed)}.", soft_wrap=True
        )
        return
    at = "".join(f", {percent(a.share)} at {radius(a.epsilon)}" for a in c.certified)
    part = f"the first {c.data.samples:,} of {total:,}" if c.data.samples < total else f"{c.data.samples:,}"
    say(
        f"Claimed: {c.data.name}, {c.data.split}, {part} samples: {percent(c.clean.share)} clean{at}; ℓ2, "
        f"{c.precision.arithmetic} arithmetic{', with local bounds' if c.samples.global_radius is not None else ''}."
    )
    unchecked = ", ".join(check.name for check in report.unchecked)
    console.print(f"[bold green]Accepted.[/bold green] Not checked: {unchecked}.", soft_wrap=True)


def verify(
    certificate: Annotated[Path, typer.Argument(help="A file that `lipcert certify --save` wrote.")],
    model: Annotated[Path, typer.Argument(help="The folder of the run whose model it is of.")],
    data: Annotated[
        Path | None,
        typer.Argument(help="Where the data sets lie.", envvar="LIPCERT_DATA", show_default="./data"),
    ] = None,
    no_data: Annotated[bool, typer.Option("--no-data", help="Check without the data what can be.")] = False,
    no_norms: Annotated[
        bool, typer.Option("--no-norms", help="Do not confirm the norms, which takes longest.")
    ] = False,
    dense_limit: Annotated[
        int, typer.Option("--dense-limit", min=1, help="Largest smaller side of a matrix formed to confirm a norm.")
    ] = CONFIRM_LIMIT,
    failure: Annotated[
        float, typer.Option("--failure", help="Probability with which a wrong norm may be confirmed.")
    ] = FAILURE,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a certificate against the model and the data, and say what was checked. Exit status 0: accepted.

    Which data set it is says the run, never the certificate. No file that is named in a certificate is opened.

    For example:

    - `lipcert verify digits.json runs/digits`

    - `lipcert verify mnist.json runs/mnist ~/data --no-norms`

    - `lipcert verify digits-mlp-crm digits-mlp-crm`, a model of `lipcert zoo` and its certificate
    """
    with guarded():
        c = read_certificate(zoo.certificate(str(certificate)) if shipped(certificate) else certificate)
        folder = run_of(model)
        where = find_device(device)
        module, header = folder.load_model()
        if c.model.dtype == "float64":  # the same numbers; whether they are those that were certified is checked below
            module = module.double()
        samples, total = None, c.data.samples
        if not no_data:
            name, split = folder.config().data.name, c.data.split
            if split not in ("train", "test"):
                raise CertificateError(f"the certificate's split {split!r} is none of a data set; try --no-data.")
            found = load(name, split, root=data).to(where)
            samples = Samples.from_dataset(found.subset(slice(c.data.samples)))  # of which it may be the first ones
            total = len(found)
        report = verify_certificate(
            c,
            module.to(where),
            samples,
            origin=origin_of(folder, tuple(header["input_shape"]), tuple(header["classes"])),
            norms="none" if no_norms else "all",
            dense_limit=dense_limit,
            failure=failure,
        )
        report = Report((_FILE, *report.checks))
    if as_json:
        emit(_document(certificate, model, report, c, total))
    else:
        _show(report, c, total)
    if not report.accepted:
        raise typer.Exit(1)
