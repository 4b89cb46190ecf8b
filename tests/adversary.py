"""An adversary: tries to break every bound and every certified radius of a network, lipcert's and those of a foil.

* slopes: Jacobians at many points, and gradient ascent on ‖f(x) − f(y)‖/‖x − y‖ over both ends, for the whole output
  and for differences of two logits; all in float64;
* balls: projected gradient ascent on every margin, on the sphere just inside the radius, in float64; the points found
  are rounded towards x and executed in float32, as users do; radii for float32 are attacked near the boundary too;
* all linear regions of the tiny ones (:mod:`adversary_exact`);
* the foil: the same formula (LipLT), with five steps of power iteration, cold, in place of each proved norm.

What is found is an :class:`adversary_report.Finding`, which says how to see it again.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

import lipcert
from adversary_attacks import attack_executed, attack_radii, steepest
from adversary_claims import Claims, foil, proved, proved_by_small_gain, proved_locally
from adversary_exact import Exact
from adversary_nets import KINDS, Network, layers, redraw
from adversary_report import Tally

PROVED = ("lipcert", "local", "small gain")
CLAIMANTS = (*PROVED, "foil")
"""Who claims: lipcert by LipLT, with local bounds, by small gain; and a foil."""


def attack_exactly(net: Network, exact: Exact, x: Tensor, claims: Claims, tally: Tally, seed: int) -> None:
    """Compare with the exact Lipschitz constants and the exact distances of a few inputs."""
    a, b = torch.triu_indices(*exact.pairs.shape, 1)
    found, claimed = (torch.tensor([v], dtype=torch.float64) for v in (exact.constant, claims.whole))
    tally.judge(net, seed, "bound, all regions", found, claimed, None)
    tally.judge(net, seed, "pairwise bound, all regions", exact.pairs[a, b], claims.pairs[a, b], None)
    distances = [exact.distance(p, int(k)) for p, k in zip(x.double().numpy(), claims.prediction, strict=True)]
    nearest = torch.tensor([d for d, _ in distances], dtype=torch.float64)
    points = torch.stack([p if q is None else torch.as_tensor(q) for p, (_, q) in zip(x, distances, strict=True)])
    sensible = torch.where(torch.isfinite(claims.radius), claims.radius, torch.zeros_like(claims.radius))
    tally.judge(net, seed, "radius, all regions", sensible, nearest, points)
    tally.points += len(exact.cells)


# --- all of it --------------------------------------------------------------------------------------------------------
def examine(
    net: Network, seed: int = 0, *, graph: lipcert.Graph | None = None, rows: int = 12, executed: bool = True
) -> dict[str, Tally]:
    """Attack one network: what was found against lipcert's claims and against the foil's (:data:`CLAIMANTS`).

    ``executed``: also radii for the float32 run, which costs a trace.
    """
    graph = lipcert.trace(net.module, net.shape) if graph is None else graph
    module, x = net.double().requires_grad_(False), net.inputs(rows, seed)
    slopes = steepest(module, torch.cat([x, 2 * x.flip(0)]).double(), seed=seed)
    exact = Exact(net.module) if net.kind == "tiny" else None  # type: ignore[arg-type]
    result = {}
    makers = {"lipcert": proved, "local": proved_locally, "small gain": proved_by_small_gain, "foil": foil}
    for name, make in makers.items():
        claims = make(graph, x)
        tally = Tally(nets=1, attacks=slopes.attacks, points=slopes.points)
        found, claimed = (torch.tensor([v], dtype=torch.float64) for v in (slopes.whole, claims.whole))
        tally.judge(net, seed, "bound", found, claimed, None)
        a, b = torch.triu_indices(*slopes.pairs.shape, 1)
        tally.judge(net, seed, "pairwise bound", slopes.pairs[a, b], claims.pairs[a, b], None)
        attack_radii(net, module, x, claims, tally, seed)
        if exact is not None:
            attack_exactly(
                net,
                exact,
                x[:3],
                Claims(claims.whole, claims.pairs, claims.radius[:3], claims.prediction[:3]),
                tally,
                seed,
            )
        if name == "lipcert" and executed and float(claims.pairs[a, b].min()) > 1e-250:
            attack_executed(net, module, x, tally, seed)
        result[name] = tally
    return result


def sweep(seeds: Iterable[int], *, draws: int, kinds: Iterable[str] = tuple(KINDS)) -> dict[str, dict[str, Tally]]:
    """Attack ``draws`` networks of each kind and seed: kind → claimant → what was found.

    One trace serves all draws.
    """
    seeds, total = list(seeds), dict[str, dict[str, Tally]]()
    for kind in kinds:
        total[kind] = {name: Tally() for name in CLAIMANTS}
        for seed in seeds:
            module, graph = layers(kind, seed), None
            for draw in range(draws):
                net = redraw(module, kind, seed, draw)
                graph = lipcert.trace(module, net.shape) if graph is None else graph
                for name, tally in examine(net, draw, graph=graph, executed=draw == 0).items():
                    total[kind][name] += tally
    return total
