"""What float32 takes off the radii of a model of the zoo, by how many products its layers add up at a time.

    python -m benchmarks.short_sums [MODEL] [--count 300] [--data DIR]

Every K-th test image, so that there are as many as asked for; small gain from the D that the run has kept, if any. A
radius for float32 is set beside that of real arithmetic by the same bound. Seconds are of forward passes of these
images, the networks taking turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import torch
from torch import nn

from lipcert import certify, trace, zoo
from lipcert.bounds.lipschitz import graph_bound
from lipcert.data import as_float, load
from lipcert.layers import blocked
from lipcert.train.run_folder import build_model

_TERMS = (256, 128, 64, 32)
_ROUNDS = 7


def _seconds(nets: dict[str, nn.Module], x: torch.Tensor) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in nets}
    for _ in range(_ROUNDS + 1):
        for name, net in nets.items():
            began = time.perf_counter()
            net(x)
            taken[name].append(time.perf_counter() - began)
    return {name: statistics.median(each[1:]) for name, each in taken.items()}


@torch.no_grad()
def main() -> None:
    """Print one line for each number of terms."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="mnist-4c3f-crm", choices=zoo.available())
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--data", default=os.environ.get("LIPCERT_DATA", "data"))
    given = parser.parse_args()
    folder = zoo.folder(given.model)
    data = load(folder.config().data.name, "test", root=given.data)
    some = torch.arange(0, len(data.images), max(1, len(data.images) // given.count))[: given.count]
    x = as_float(data.images[some])
    shipped, model = folder.load_model()[0], folder.config().model
    options = {key: value for key, value in model.options.items() if key != "terms"}  # as torch adds up
    plain = build_model(model.model_copy(update={"options": options}), data.input_shape, data.num_classes).eval()
    plain.load_state_dict(shipped.state_dict())
    plain.requires_grad_(False)
    nets = {"as they are": plain} | {f"at most {n}": blocked(plain, terms=n) for n in _TERMS}
    taken = _seconds(nets, x)
    for name, net in nets.items():
        graph = trace(net, tuple(x.shape[1:]))
        bound = graph_bound(
            graph,
            method="smallgain",
            scope="pairwise",
            guarantee="upper",
            scaling="channel",
            start=folder.scaling(),
            parts=True,
        )
        radii = [certify(net, x, bound=bound, precision=p).radius for p in ("float32", "real")]
        left = (radii[0] / radii[1])[radii[1] > 0].median()
        print(
            f"{name:>12}  of a radius float32 leaves {100 * float(left):.2f} %  "
            f"forward pass {1000 * taken[name]:.0f} ms, {taken[name] / taken['as they are']:.2f} times",
            flush=True,
        )


if __name__ == "__main__":
    main()
