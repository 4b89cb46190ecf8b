"""A comparator from outside: orthogonal convolutions of another library, trained in the same seconds on the same data.

    pip install --no-deps orthogonium==0.0.4
    python -m benchmarks.outside [--name cifar10-jpeg] [--data DIR] [--seconds 1800]

The library's own network for images of this size (``BCOPLargeCNN``: four adaptive orthogonal convolutions and three
orthogonal linear layers, MaxMin) and loss (``LossXent``, cross-entropy with an offset and a temperature), Adam with one
cycle of the learning rate over the seconds there are. Its radii are the margin over the product of the norms of its
layers at the end, each proved by lipcert, the last by pairs; on the whole test set, logits in float32.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from lipcert import lipschitz
from lipcert.bounds import Estimate
from lipcert.certify import radii
from lipcert.data import Augment, Batches, load
from lipcert.train.evaluate import predict

_LR, _CLIP, _BATCH = 1e-3, 1.0, 256
_EPSILONS = (36 / 255, 72 / 255, 108 / 255)
_CPU = torch.device("cpu")


def _network(shape: tuple[int, ...], classes: int) -> tuple[nn.Sequential, Any]:
    from orthogonium.losses import LossXent  # type: ignore[import-not-found]
    from orthogonium.model_factory.models_factory import BCOPLargeCNN  # type: ignore[import-not-found]

    return BCOPLargeCNN(shape, classes), LossXent(classes)


def _one_cycle(done: float) -> float:
    """Up over the first third, down to zero by cosines: the learning rate's share of its largest value."""
    return (
        0.5 - 0.5 * math.cos(math.pi * done / 0.3) if done < 0.3 else 0.5 + 0.5 * math.cos(math.pi * (done - 0.3) / 0.7)
    )


def _constant(net: nn.Sequential, shape: tuple[int, ...]) -> Estimate:
    """Margins' Lipschitz constants, (C, C): the product of what lipcert proves of each layer."""
    net.zero_grad()
    for module in list(net.modules()):
        if isinstance(module, (nn.Conv2d, nn.Linear)) and parametrize.is_parametrized(module):
            for name in list(module.parametrizations):
                parametrize.remove_parametrizations(module, name)
    x, product = torch.zeros(1, *shape), 1.0
    with torch.no_grad():
        for layer in net[:-1]:
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                product *= float(lipschitz(layer, x.shape[1:], guarantee="upper"))
            x = layer(x)
    pairs = lipschitz(net[-1], x.shape[1:], scope="pairwise", guarantee="upper")
    return Estimate(product * pairs.value, "layers", "pairwise")  # the logits have no bound on their rounding


def main(name: str = "cifar10-jpeg", data: Path | None = None, seconds: float = 1800.0, seed: int = 0) -> None:
    """Train for so long, and print one line."""
    torch.manual_seed(seed)
    train, test = load(name, "train", root=data), load(name, "test", root=data)
    net, loss = _network(train.input_shape, train.num_classes)
    optimizer = torch.optim.Adam(net.parameters(), lr=_LR)
    batches = Batches(train, _BATCH, shuffle=True, seed=seed, augment=Augment(flip=True), device=_CPU, drop_last=True)
    began, epoch, steps = time.perf_counter(), 0, 0
    while (done := (time.perf_counter() - began) / seconds) < 1:
        for x, y in batches.epoch(epoch):
            for group in optimizer.param_groups:
                group["lr"] = _LR * _one_cycle(done)
            with torch.autocast("cpu", torch.bfloat16):
                logits = net(x)
            optimizer.zero_grad()
            loss(logits.float(), y).backward()
            nn.utils.clip_grad_norm_(net.parameters(), _CLIP)
            optimizer.step()
            steps += 1
            if (done := (time.perf_counter() - began) / seconds) >= 1:
                break
        epoch += 1
    net.eval()
    with torch.no_grad():
        net(test.images[:2].float() / 255)  # their weights are made anew in a forward pass
    bound = _constant(net, train.input_shape)
    logits, labels = predict(net, test, device=_CPU)
    found = radii(logits, bound, labels)
    shares = [found.clean_accuracy, *(found.robust_accuracy(e) for e in _EPSILONS)]
    print(f"{steps} steps of {_BATCH} ({steps * _BATCH / len(train):.1f} epochs) in {seconds:.0f} s, "
          f"{torch.get_num_threads()} threads; largest pair {bound.ends()[1]:.4f}")  # fmt: skip
    print(" | ".join(f"{100 * s:.2f}" for s in shares))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.outside", description=__doc__)
    parser.add_argument("--name", default="cifar10-jpeg")
    parser.add_argument("--data", type=Path, default=None)
    parser.add_argument("--seconds", type=float, default=1800.0)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))
