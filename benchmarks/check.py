"""Product, LipLT and small gain on the two weight sets published with LipSDP, beside the known values.

Needs the folder with `mnist_weights.mat` and `random_weights.mat` in the environment variable LIPCERT_LIPSDP_DATA.
"""

from __future__ import annotations

import os
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from lipcert import lipschitz

KNOWN = {"mnist": (31.50, 27.76, 24.32), "random": (43.31, 39.86, 36.48)}  # product, LipLT, LipSDP (published)


def network(path: Path) -> tuple[nn.Sequential, int]:
    """The ReLU network of a weight file, in float64, without biases (they do not matter)."""
    from scipy.io import loadmat

    weights = [torch.from_numpy(w.astype(float)) for w in loadmat(path)["weights"].ravel()]
    layers: list[nn.Module] = []
    for weight in weights:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
        layer.weight.data.copy_(weight)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval(), weights[0].shape[1]


def main() -> None:
    """Print the bounds, proved and estimated, and what solvers of LipSDP find, beside the known values."""
    folder = os.environ.get("LIPCERT_LIPSDP_DATA")
    if not folder:
        print("LIPCERT_LIPSDP_DATA is not set: skipped", file=sys.stderr)
        return
    print(f"{'weights':>8} {'method':>9} {'known':>8} {'L <=':>9} {'L ~':>9} {'seconds':>8}")
    for name, values in KNOWN.items():
        net, size = network(Path(folder) / f"{name}_weights.mat")
        for method, known in zip(("product", "liplt", "smallgain"), values, strict=True):
            began = time.perf_counter()
            proved = float(lipschitz(net, (size,), method=method, guarantee="upper"))
            seconds = time.perf_counter() - began
            estimate = float(lipschitz(net, (size,), method=method))
            print(f"{name:>8} {method:>9} {known:>8.2f} {proved:>9.4f} {estimate:>9.4f} {seconds:>8.2f}")
        if find_spec("cvxpy"):
            _solvers(name, net, values[-1])


def _solvers(name: str, net: nn.Sequential, known: float) -> None:
    """LipSDP with a multiplier for each neuron, by two solvers: what their multipliers prove, and what they say."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from reference_sdp import lipsdp

    weights = [m.weight.detach().numpy() for m in net if isinstance(m, nn.Linear)]
    for solver in ("SCS", "CLARABEL"):
        began = time.perf_counter()
        found = lipsdp(weights, solver=solver)
        seconds = time.perf_counter() - began
        print(f"{name:>8} {solver:>9} {known:>8.2f} {found.value:>9.4f} {found.claimed:>9.4f} {seconds:>8.2f}")


if __name__ == "__main__":
    main()
