"""Every bound of fully connected ReLU networks of several depths and widths, and the seconds that each takes.

Networks of 64 inputs and 10 outputs with random weights of fixed seeds: torch's own initialisation, or He's uniform
one. Product and LipLT are lipcert's, the closed forms and LipSDP the references of the tests (`tests/closed_forms.py`,
`tests/reference_sdp.py`). LipSDP is solved by SCS, only up to a number of neurons, and where it does not finish within
the limit there is a dash. The lower bound is a search from Gaussian inputs. Without cvxpy (`pip install -e
'.[references]'`) that column is empty.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn

from lipcert import lipschitz
from lipcert.bounds import lower_bound

DEPTHS, WIDTHS, INPUTS, OUTPUTS = (3, 5, 8, 12), (64, 128, 256, 512), 64, 10
_SCALINGS = ("layer", "neuron")


def network(depth: int, width: int, *, initial: str = "torch", seed: int = 0) -> nn.Sequential:
    """An MLP of ``depth`` weight matrices in float64, initialised as torch does by default or by He's uniform rule."""
    widths = [INPUTS, *[width] * (depth - 1), OUTPUTS]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [m for a, b in pairwise(widths) for m in (nn.Linear(a, b, dtype=torch.float64), nn.ReLU())]
        if initial == "he":
            for layer in layers[::2]:
                nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")
    return nn.Sequential(*layers[:-1]).eval()


def methods(*, guarantee: str, sdp_seconds: float, sdp_neurons: int) -> dict[str, Callable[[nn.Sequential], float]]:
    """What is computed, by the name of its column; NaN where it does not finish."""
    tests = str(Path(__file__).resolve().parent.parent / "tests")
    if tests not in sys.path:
        sys.path.insert(0, tests)
    import closed_forms

    def matrices(net: nn.Sequential) -> list:
        return [m.weight.detach().numpy() for m in net if isinstance(m, nn.Linear)]

    def sdp(net: nn.Sequential) -> float:
        from reference_sdp import lipsdp

        weights = matrices(net)
        if not find_spec("cvxpy") or sum(map(len, weights[:-1])) > sdp_neurons:
            return math.nan
        solution = lipsdp(weights, solver="SCS", seconds=sdp_seconds)
        return solution.value if solution.status == "optimal" else math.nan

    def by_lipcert(**options: str) -> Callable[[nn.Sequential], float]:
        return lambda net: float(lipschitz(net, (INPUTS,), guarantee=guarantee, **options))  # type: ignore[arg-type]

    inputs = torch.randn(20, INPUTS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = {
        "lower": lambda net: float(lower_bound(net, inputs, steps=200, starts=64)),
        "product": by_lipcert(method="product"),
        "LipLT": by_lipcert(method="liplt"),
        "ECLipsE-Fast": lambda net: closed_forms.eclipse_fast(matrices(net)),
        "Syed-Hu": lambda net: closed_forms.syed_hu(matrices(net)),
        "LipSDP": sdp,
    }
    for scaling in _SCALINGS:
        found[f"gain/{scaling}"] = by_lipcert(method="smallgain", scaling=scaling)
    return found


def main(
    depths: Sequence[int] = DEPTHS,
    widths: Sequence[int] = WIDTHS,
    *,
    initial: str = "torch",
    guarantee: str = "estimate",
    sdp_seconds: float = 300.0,
    sdp_neurons: int = 400,
) -> None:
    """Print a line of values for each network, and below it one of seconds."""
    columns = methods(guarantee=guarantee, sdp_seconds=sdp_seconds, sdp_neurons=sdp_neurons)
    print(f"{initial} initialisation; product, LipLT and small gain: {guarantee}")
    print(f"{'depth':>5} {'width':>5}        " + " ".join(f"{name:>12}" for name in columns))
    for depth in depths:
        for width in widths:
            net = network(depth, width, initial=initial)
            values, seconds = [], []
            for function in columns.values():
                began = time.perf_counter()
                values.append(function(net))
                seconds.append(math.nan if math.isnan(values[-1]) else time.perf_counter() - began)
            for label, numbers, form in (("L", values, ".5g"), ("seconds", seconds, ".2f")):
                shown = ["—" if math.isnan(v) else f"{v:{form}}" for v in numbers]
                head = f"{depth:>5} {width:>5}" if label == "L" else " " * 11
                print(f"{head} {label:<7}" + " ".join(f"{v:>12}" for v in shown), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mlps", description=__doc__)
    parser.add_argument("--depths", type=int, nargs="+", default=DEPTHS, help="numbers of weight matrices")
    parser.add_argument("--widths", type=int, nargs="+", default=WIDTHS)
    parser.add_argument("--initial", choices=["torch", "he"], default="torch")
    parser.add_argument("--guarantee", choices=["estimate", "upper"], default="estimate", help="of lipcert's bounds")
    parser.add_argument("--sdp-seconds", type=float, default=300.0, help="time limit of SCS for each network")
    parser.add_argument("--sdp-neurons", type=int, default=400, help="LipSDP is not tried with more hidden neurons")
    main(**vars(parser.parse_args()))
