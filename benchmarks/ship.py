"""Put a trained model into the zoo: its weights, configuration and summary, and a certificate of all test images.

    python -m benchmarks.ship RUN NAME [lipcert certify's options]

What is there under that name is replaced. ``lipcert certify NAME`` and ``lipcert verify NAME NAME`` make it again.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from lipcert import zoo
from lipcert.cli.main import app
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


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
