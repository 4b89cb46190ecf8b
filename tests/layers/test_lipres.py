"""The lipres family: shapes, the constant of all but the last layer, and options."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import lipcert
from lipcert.errors import ConfigError
from lipcert.layers import fold
from lipcert.models import build
from lipcert.models.lipres import lipres

TINY: dict[str, Any] = {"widths": [4, 6], "blocks": [1, 2], "hidden": 8, "input_shape": (1, 6, 7), "num_classes": 3}


PLAIN = {"down": "plain", "plain_activation": "half-abs"}


@pytest.mark.parametrize(
    "options", [{"block": "residual"}, {"block": "smallgain"}, PLAIN, {"stem": "full"}, {**PLAIN, "stem": "full"}]
)
def test_every_difference_of_logits_is_nonexpansive(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = lipres(**TINY, **options, head="pairwise", head_scale=1.0)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn(p.shape))
    net.eval()
    quick: dict[str, Any] = {"scaling": "channel", "seconds": 0.2}
    bound = lipcert.lipschitz(net, (1, 6, 7), method="smallgain", scope="pairwise", guarantee="upper", **quick)
    assert float(bound.value.max()) <= 1.01
    folded = fold(net)
    x = torch.rand(5, 1, 6, 7)
    torch.testing.assert_close(folded(x), net(x), rtol=5e-3, atol=1e-3)
    assert float(lipcert.lipschitz(folded, (1, 6, 7), method="smallgain", scope="pairwise", **quick).value.max()) <= 1.0


@pytest.mark.parametrize("size", ["s", "m"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_sizes(size: str, shape: tuple[int, ...]) -> None:
    net = build(f"lipres-{size}", input_shape=shape, num_classes=10)
    assert net(torch.rand(2, *shape)).shape == (2, 10)
    assert ("pad" in dict(net.named_children())) == (shape[1] % 8 != 0)


def test_plain_layers_with_absolute_values_keep_the_size_of_gradients_as_they_start() -> None:
    torch.manual_seed(0)
    net = lipres([12, 48], [1, 1], 192, input_shape=(3, 8, 8), num_classes=10, **PLAIN)
    assert [name for name, _ in net.named_children() if "act" in name] == ["stem_act", "down2_act", "act"]
    x = torch.rand(1, 3, 8, 8)
    jacobian = torch.autograd.functional.jacobian(net[:-1].eval(), x).reshape(192, 192)
    sizes = torch.linalg.svdvals(jacobian)
    assert float(sizes[-1]) > 0.95
    assert float(sizes[0]) <= 1.0 + 1e-5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"input_shape": (8,)}, "takes images"),
        ({"block": "plain"}, "block must be"),
        ({"head": "none"}, "head must be"),
        ({"down": "none"}, "down must be"),
        ({"stem": "none"}, "stem must be"),
        ({"blocks": [1]}, "blocks must be"),
        ({"activation": "maxmin"}, "not monotone"),
    ],
)
def test_refusals(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        lipres(**{**TINY, **options})


def test_it_trains() -> None:
    torch.manual_seed(0)
    net: nn.Module = lipres(**TINY)
    x, y = torch.rand(32, 1, 6, 7), torch.randint(3, (32,))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
