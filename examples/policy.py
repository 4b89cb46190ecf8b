"""How much noise in the sensors can change what a control policy does: a trusted bound.

    python examples/policy.py

A small policy is fitted to the linear-quadratic controller of a double integrator (position and velocity to a force in
[-1, 1]). If the sensors are off by ε at most (ℓ2), the force is off by L·ε at most, L being the Lipschitz constant that
is bounded here. Some seconds on a laptop.
"""

from __future__ import annotations

import torch
from torch import nn

import lipcert
from lipcert.bounds import lower_bound


def controller(state: torch.Tensor) -> torch.Tensor:
    """A linear-quadratic regulator for x'' = u with unit weights: u = −x − √3·x', as far as the actuator goes."""
    return (-state[:, :1] - 3**0.5 * state[:, 1:]).clamp(-1, 1)


def fitted(steps: int = 600) -> nn.Module:
    """A policy that imitates it, with decay of the weights: what is not needed would make the bound large."""
    torch.manual_seed(0)
    policy = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1), nn.Tanh())
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        state = 4 * torch.rand(256, 2) - 2
        optimizer.zero_grad()
        (policy(state) - controller(state)).square().mean().backward()
        optimizer.step()
    return policy.eval()


def main(steps: int = 600) -> dict[str, float]:
    """Print the bounds; returns them by name."""
    policy = fitted(steps)
    found = {
        method: float(lipcert.lipschitz(policy, (2,), method=method, guarantee="upper"))  # type: ignore[arg-type]
        for method in ("product", "liplt", "smallgain")
    }
    found["points"] = float(lower_bound(lipcert.trace(policy, (2,)), 4 * torch.rand(64, 2) - 2).value)
    for name, value in found.items():
        print(f"{name:>10}: {'≥' if name == 'points' else '≤'} {value:.3f}")
    noise = 0.05
    print(f"sensors off by {noise} change the force by {found['smallgain'] * noise:.3f} at most, by a proof")
    return found


if __name__ == "__main__":
    main()
