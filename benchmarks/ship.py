"""Put a trained model into the zoo: its weights, configuration and summary, and a certificate of all test images.

    python -m benchmarks.ship RUN NAME [lipcert certify's options]
    python -m benchmarks.ship --again NAME [--local-at]

What is there under that name is replaced. ``lipcert certify NAME`` and ``lipcert verify NAME NAME`` make it again.
``--again`` makes the certificate of a model anew from the norms that it states, which no clock has a part in: after a
change of how rounding is counted, say. Where it has local radii, they are looked for again, at the radii of its
shares, and with ``--local-at`` where it has none. The data set is looked for in ``$LIPCERT_DATA``, as ever.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from lipcert import trace, zoo
from lipcert.certify import Samples, make_certificate, read_certificate, write_certificate
from lipcert.certify.certificate import restated
from lipcert.certify.network import BATCH, certified
from lipcert.cli.certify import origin_of
from lipcert.cli.main import app
from lipcert.data import load
from lipcert.train import RunFolder


def main(run: Path, name: str, *options: str) -> None:
    """Copy what a run has left, and certify it."""
    source, target = RunFolder(run), RunFolder(Path(zoo.__file__).parent / name)
    source.load_model()
    target.path.mkdir(exist_ok=True)
    for a, b in zip(source.files, target.files, strict=True):
        if a != source.checkpoint_file and a.exists():
            shutil.copyfile(a, b)
        else:  # a folded run has no metrics of its own, and those of the model before it are not its
            b.unlink(missing_ok=True)
    app(["certify", str(target.path), "--save", str(target.path / "certificate.json"), *options])


def again(name: str, *, locally: bool = False) -> None:
    """The certificate of a model anew, of the norms that the one before states."""
    folder, file = zoo.folder(name), zoo.certificate(name)
    before, module = read_certificate(file), folder.load_model()[0].eval()
    data = load(folder.config().data.name, "test")
    samples, graph = Samples.from_dataset(data), trace(module, data.input_shape)
    bound = restated(graph, before.bound)
    epsilons, origin = [v.epsilon for v in before.certified], origin_of(folder, data.input_shape, data.classes)
    local = epsilons if locally or before.samples.global_radius is not None else False
    result = certified(graph, bound, samples.batches(BATCH), samples.labels, None, local=local)
    made = make_certificate(graph, result, samples, epsilons=epsilons, origin=origin)
    write_certificate(file, made)
    for old, new in zip(before.certified, made.certified, strict=True):
        print(f"{name} at {new.epsilon:g}: {100 * old.share:.2f} -> {100 * new.share:.2f} %")


if __name__ == "__main__":
    if sys.argv[1] == "--again":
        again(sys.argv[2], locally="--local-at" in sys.argv[3:])
    else:
        main(Path(sys.argv[1]), *sys.argv[2:])
