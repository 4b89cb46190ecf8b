"""A training step with CRM and the LipLT pairwise bound against plain cross-entropy, alternating in one run."""

from __future__ import annotations

import statistics
import time

import torch
from torch.nn.functional import cross_entropy

from lipcert.models import build
from lipcert.train import TrainingBound, crm_loss

CASES = (
    # batch, precision, channels last, refresh the bound every n steps, power iterations
    (512, "float32", False, 1, 1),
    (512, "float32", True, 1, 1),
    (512, "bfloat16", True, 1, 1),
    (128, "float32", True, 1, 1),
    (128, "float32", True, 2, 1),
    (128, "bfloat16", True, 1, 1),
    (128, "bfloat16", True, 4, 4),
)


def _pair(batch: int, precision: str, last: bool, every: int, iterations: int, rounds: int) -> tuple[float, float]:
    torch.manual_seed(0)
    layout = torch.channels_last if last else torch.contiguous_format
    model = build("6c2f", input_shape=(3, 32, 32), num_classes=10).to(memory_format=layout)
    optimizer = torch.optim.Adam(model.parameters(), 1e-4, fused=True)
    bound = TrainingBound(model, (3, 32, 32), every=every, iterations=iterations, warmup=3)
    x = torch.rand(batch, 3, 32, 32).contiguous(memory_format=layout)
    y = torch.randint(10, (batch,))

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
    columns = ("6C2F, batch", 12), ("precision", 9), ("layout", 13), ("every", 5), ("iterations", 10), ("CE ms", 7)
    print(*(f"{name:>{width}}" for name, width in columns), " CRM/CE")
    for batch, precision, last, every, iterations in CASES:
        plain, ratio = _pair(batch, precision, last, every, iterations, rounds)
        layout = "channels last" if last else "contiguous"
        print(f"{batch:>12} {precision:>9} {layout:>13} {every:>5} {iterations:>10} {1e3 * plain:>7.0f} {ratio:>7.2f}")


if __name__ == "__main__":
    main()
