"""A training step with CRM and a pairwise bound, LipLT or small gain, against plain cross-entropy, alternating."""

from __future__ import annotations

import statistics
import time

import torch
from torch.nn.functional import cross_entropy

from lipcert.models import build
from lipcert.train import GainBound, TrainingBound, crm_loss

# architecture, input shape, classes: images a second with a pairwise LipLT bound and without one
NETS = (
    ("6c2f", (3, 32, 32), 10),
    ("6c2f", (3, 32, 32), 200),
    ("8c2f", (3, 64, 64), 10),
    ("8c2f", (3, 64, 64), 200),
)
CASES = (
    # method, batch, precision, channels last, refresh the bound every n steps, iterations
    ("liplt", 512, "float32", False, 1, 1),
    ("liplt", 512, "float32", True, 1, 1),
    ("liplt", 512, "bfloat16", True, 1, 1),
    ("liplt", 128, "float32", True, 1, 1),
    ("liplt", 128, "float32", True, 2, 1),
    ("liplt", 128, "bfloat16", True, 1, 1),
    ("liplt", 128, "bfloat16", True, 4, 4),
    ("smallgain", 512, "float32", True, 1, 1),
    ("smallgain", 256, "bfloat16", True, 1, 1),
    ("liplt", 256, "bfloat16", True, 1, 1),
    ("smallgain", 128, "float32", True, 1, 1),
)


def _pair(
    method: str,
    batch: int,
    precision: str,
    last: bool,
    every: int,
    iterations: int,
    rounds: int,
    net: tuple[str, tuple[int, ...], int] = NETS[0],
) -> tuple[float, float]:
    torch.manual_seed(0)
    layout = torch.channels_last if last else torch.contiguous_format
    name, shape, classes = net
    model = build(name, input_shape=shape, num_classes=classes).to(memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=True)
    kind = GainBound if method == "smallgain" else TrainingBound
    bound = kind(model, shape, every=every, iterations=iterations)
    x = torch.rand(batch, *shape).contiguous(memory_format=layout)
    y = torch.randint(classes, (batch,))

    def step(robust: bool) -> float:
        began = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            logits = model(x)
        if robust:
            loss = crm_loss(logits.float(), y, bound(), temperature=12.0, radius_cap=0.25, weight=15.0)
        else:
            loss = cross_entropy(logits.float(), y)
        loss.backward()
        optimizer.step()
        return time.perf_counter() - began

    plain, robust = [], []
    for i in range(rounds + 2):
        a = step(False)
        # one whole period of the refreshing schedule, so that its cost is spread as in training
        b = statistics.mean(step(True) for _ in range(every))
        if i >= 2:
            plain.append(a)
            robust.append(b)
    return statistics.median(plain), statistics.median([b / a for a, b in zip(plain, robust, strict=True)])


def main(rounds: int = 12) -> None:
    """Print the cost of a step and the median ratio for each case."""
    columns = ("bound", 9), ("6C2F, batch", 12), ("precision", 9), ("layout", 13), ("every", 5), ("iterations", 10)
    print(*(f"{name:>{width}}" for name, width in columns), "  CE ms  CRM/CE")
    for case in CASES:
        plain, ratio = _pair(*case, rounds)
        shown = (*case[:3], "channels last" if case[3] else "contiguous", *case[4:])
        cells = (f"{value:>{width}}" for value, (_, width) in zip(shown, columns, strict=True))
        print(*cells, f"{1e3 * plain:>7.0f} {ratio:>7.2f}", flush=True)
    print("\nLipLT, batch 128, bfloat16, channels last")
    print(f"{'network':>8} {'classes':>8} {'CE, images/s':>13} {'CRM, images/s':>14}")
    for net in NETS:
        plain, ratio = _pair("liplt", 128, "bfloat16", True, 1, 1, rounds, net)
        print(f"{net[0]:>8} {net[2]:>8} {128 / plain:>13.0f} {128 / plain / ratio:>14.0f}", flush=True)


if __name__ == "__main__":
    main()
