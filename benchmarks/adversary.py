"""10,000 small networks under attack: how often a bound or a certified radius breaks, lipcert's and power iteration's.

The harness is tests/adversary.py: random networks of every kind, slope attacks, ball attacks in float64 and executed in
float32, all linear regions of the tiny ones. The foil is the same formula with five steps of power iteration, cold, in
place of each proved norm: it shows what the attacks can see.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path

_ROWS = (
    "bound",
    "pairwise bound",
    "radius",
    "bound, all regions",
    "pairwise bound, all regions",
    "radius, all regions",
    "radius of real arithmetic, run in float32",
    "radius for float32, run in float32",
)
_DRAWS = 5


def main(nets: int = 10_000) -> None:
    """Print a line for each kind of network, then a line for each claim: violations, and how near the attacks got."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from adversary import CLAIMANTS, sweep
    from adversary_nets import KINDS
    from adversary_report import Tally

    seeds = range(math.ceil(nets / (_DRAWS * len(KINDS))))
    total = {name: Tally() for name in CLAIMANTS}
    print(f"{'kind':>14} {'nets':>6} {'points':>10} {'broken':>7} {'by the foil':>12} {'slope/L':>9} {'seconds':>8}")
    for kind in KINDS:
        began = time.perf_counter()
        found = sweep(seeds, draws=_DRAWS, kinds=[kind])[kind]
        ours, foil = found["lipcert"], found["foil"]
        findings = [f for name, tally in found.items() if name != "foil" for f in tally.findings]
        for finding in findings:
            print(finding, flush=True)
        print(
            f"{kind:>14} {ours.nets:>6} {ours.points:>10} {len(findings):>7} {len(foil.findings):>12} "
            f"{ours.tightest.get('bound', 0):>9.6f} {time.perf_counter() - began:>8.1f}",
            flush=True,
        )
        for name, tally in found.items():
            total[name] += tally
    ours, foil = total["lipcert"], total["foil"]
    print(f"\n{ours.nets} networks, {ours.attacks} attacks, {ours.points} points")
    print(f"{'claim':>42} {'violations':>11} {'nearest':>9} {'by the foil':>12} {'nearest':>9}")
    for what in _ROWS:
        if what in ours.broken:
            near = [f"{t.tightest[what]:9.6f}" if what in t.tightest else f"{'–':>9}" for t in (ours, foil)]
            count = foil.broken.get(what, "–")
            print(f"{what:>42} {ours.broken[what]:>11} {near[0]} {count:>12} {near[1]}")
    for name, added in (("local", ", with local bounds"), ("small gain", ", small gain")):
        tally = total[name]
        for what in tally.broken:
            if (name == "small gain" or what.startswith("radius")) and "real arithmetic" not in what:
                near = f"{tally.tightest[what]:9.6f}" if what in tally.tightest else f"{'–':>9}"
                print(f"{what + added:>42} {tally.broken[what]:>11} {near}")
    print("nearest: the largest slope found / bound, or radius / distance of the nearest changed prediction found")


if __name__ == "__main__":
    main()
