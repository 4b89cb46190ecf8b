"""Where the time of a training step goes: images, forward pass, backward pass, bound, clipping, optimizer.

    python -m benchmarks parts

Median milliseconds of steps of the loop's own parts on made-up images, in the settings of the configurations.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict

import torch
from torch import nn

from lipcert.data import Dataset
from lipcert.train import load_config
from lipcert.train.factory import make_batches, make_bound, make_loss, make_optimizer
from lipcert.train.precision import computes_bfloat16
from lipcert.train.run_folder import build_model

_CASES = (
    ("cifar10-6c2f-quick", (3, 32, 32)),
    ("cifar10-lipres-s-quick", (3, 32, 32)),
    ("mnist-4c3f-quick", (1, 28, 28)),
)
_PARTS = ("images", "forward", "loss", "backward", "bound", "clip", "optimizer")


def _times(name: str, shape: tuple[int, ...], rounds: int) -> tuple[int, dict[str, float]]:
    config, device = load_config(name), torch.device("cpu")
    torch.manual_seed(0)
    layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
    images = torch.randint(256, (8 * config.train.batch_size, *shape), dtype=torch.uint8)
    data = Dataset("made up", "train", images, torch.randint(10, (len(images),)), tuple("0123456789"))
    model = build_model(config.model, shape, 10).to(memory_format=layout)  # type: ignore[call-overload]
    batches, optimizer = make_batches(config, data, device, layout), make_optimizer(config, model)
    bound = make_bound(config.bound, model, shape, seed=0, every=1, iterations=1)
    robust = make_loss(config.loss)
    low = config.train.precision == "bfloat16" and computes_bfloat16(device)  # as lipcert train does
    spent: dict[str, list[float]] = defaultdict(list)
    passed = [0.0]
    inner = bound.deferred

    def timed(*arguments: object) -> object:
        began = time.perf_counter()
        result = inner(*arguments)  # type: ignore[arg-type]
        passed[0] = time.perf_counter() - began
        return result

    bound.deferred = timed  # type: ignore[method-assign,assignment]
    turn, last = iter(batches.epoch(0)), [time.perf_counter()]

    def mark(part: str, less: float = 0.0) -> None:
        now = time.perf_counter()
        spent[part].append(1e3 * (now - last[0] - less))
        last[0] = time.perf_counter()

    for i in range(rounds):
        last[0] = time.perf_counter()
        x, y = next(turn, (None, None))
        if x is None:
            turn = iter(batches.epoch(i))
            continue
        mark("images")
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            logits = model(x)
        mark("forward")
        loss = robust(logits.float(), y, bound())
        mark("loss")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        mark("backward", passed[0])
        spent["bound"].append(1e3 * passed[0])
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        mark("clip")
        optimizer.step()
        mark("optimizer")
    return config.train.batch_size, {p: statistics.median(spent[p][2:]) for p in _PARTS}


def main(rounds: int = 24) -> None:
    """Print a line for each configuration."""
    print(f"{'configuration':>24} {'batch':>6}{''.join(f'{p:>11}' for p in _PARTS)}{'images/s':>10}  (ms)")
    for name, shape in _CASES:
        batch, found = _times(name, shape, rounds)
        cells = "".join(f"{found[p]:>11.1f}" for p in _PARTS)
        print(f"{name:>24} {batch:>6}{cells}{1e3 * batch / sum(found.values()):>10.0f}", flush=True)


if __name__ == "__main__":
    main()
