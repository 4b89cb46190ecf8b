"""Cases: chains of linear layers, convolutions of every kind, normalisation in eval, parametrised weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrizations

from catalogue import case, classifier, layers
from lipcert.layers import BlockedConv2d, BlockedConvTranspose2d, BlockedLinear

# --- chains -----------------------------------------------------------------------------------------------------
layers("linear", (5,), lambda: [], "chain")
layers("mlp", (5,), lambda: [nn.Linear(5, 7), nn.ReLU()], "chain")
layers("mlp-deep", (6,), lambda: [m for _ in range(4) for m in (nn.Linear(6, 6), nn.ReLU())], "chain")
layers("mlp-tanh-nobias", (4,), lambda: [nn.Linear(4, 9, bias=False), nn.Tanh(), nn.Linear(9, 4), nn.Tanh()], "chain")
layers(
    "mlp-mixed",
    (4,),
    lambda: [
        nn.Linear(4, 6),
        nn.ReLU(),
        nn.Linear(6, 6),
        nn.GELU(),
        nn.Linear(6, 6),
        nn.LeakyReLU(0.1),
        nn.Linear(6, 5),
        nn.Sigmoid(),
    ],
    "chain",
)
layers("two-affine", (4,), lambda: [nn.Linear(4, 20), nn.Linear(20, 6), nn.ReLU()], "chain")
layers("two-activations", (4,), lambda: [nn.Linear(4, 6), nn.ReLU(), nn.Tanh()], "chain")
layers("activation-first", (4,), lambda: [nn.ReLU()], "chain")
layers("tokens", (3, 4), lambda: [nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)], "chain")
layers(
    "dropout-identity",
    (5,),
    lambda: [
        nn.Dropout(0.5),
        nn.Linear(5, 6),
        nn.Identity(),
        nn.ReLU(),
        nn.AlphaDropout(0.3),
        nn.Linear(6, 4),
        nn.ELU(),
        nn.Dropout(0.2, inplace=True),
    ],
    "chain",
)
layers(
    "blocks",
    (7,),
    lambda: [BlockedLinear(nn.Linear(7, 6), terms=3), nn.ReLU(), BlockedLinear(nn.Linear(6, 5, bias=False), terms=1)],
    "chain",
)
layers(
    "conv-blocks",
    (5, 4, 4),
    lambda: [BlockedConv2d(nn.Conv2d(5, 4, 3, 2, 1), terms=20), nn.ReLU(), BlockedConv2d(nn.Conv2d(4, 2, 2), terms=4)],
    "chain",
)
layers(
    "transposed-blocks",
    (5, 3, 3),
    lambda: [
        BlockedConvTranspose2d(nn.ConvTranspose2d(5, 4, 3, 2, 1, output_padding=1), terms=18),
        nn.ReLU(),
        BlockedConvTranspose2d(nn.ConvTranspose2d(4, 2, 2, bias=False), terms=4),
    ],
    "chain",
)
layers("dropout2d", (2, 4, 4), lambda: [nn.Conv2d(2, 3, 3), nn.Dropout2d(0.5), nn.ReLU()], "chain")
layers("inplace-relu", (5,), lambda: [nn.Linear(5, 6), nn.ReLU(inplace=True), nn.Dropout(0.1, inplace=True)], "chain")
case("ends-in-activation", (4,), lambda: nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.ReLU()), "chain")
case("identity", (4,), nn.Identity, "chain")
case("ten-classes", (6,), lambda: classifier((6,), nn.Linear(6, 8), nn.ReLU(), classes=10), "chain")


def _rank_deficient() -> nn.Module:
    net = classifier((5,), nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU())
    with torch.no_grad():
        net[0].weight[3:] = net[0].weight[:3]
        net[2].weight[:, 1:] = 0
        net[-1].weight[1] = net[-1].weight[0]  # two logits that never differ by more than their bias
    return net


def _dead() -> nn.Module:
    net = classifier((4,), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5), nn.ReLU())
    with torch.no_grad():
        net[0].weight[2] = 0
        net[2].weight[:, 1] = 0
    return net


case("rank-deficient", (5,), _rank_deficient, "chain")
case("dead-neurons", (4,), _dead, "chain")

# --- convolutions -------------------------------------------------------------------------------------------------
C = nn.Conv2d
layers("conv1d-stride", (2, 11), lambda: [nn.Conv1d(2, 4, 4, stride=3, padding=1), nn.ReLU()], "chain")
layers(
    "conv2d-stride",
    (2, 6, 7),
    lambda: [C(2, 4, 3, stride=2, padding=1), nn.ReLU(), C(4, 3, 2, stride=2), nn.ReLU()],
    "chain",
)
layers("conv2d-no-divide", (1, 8, 8), lambda: [C(1, 3, 4, 2, 2), nn.ReLU(), C(3, 3, 3, 2, 0), nn.ReLU()], "chain")
layers(
    "conv3d",
    (1, 4, 3, 5),
    lambda: [nn.Conv3d(1, 3, (2, 3, 2), stride=(2, 1, 2), padding=(0, 1, 1)), nn.ReLU()],
    "chain",
)
layers("conv-dilated", (2, 7, 7), lambda: [C(2, 3, 3, dilation=(2, 1), padding=(2, 0)), nn.ReLU()], "chain")
layers("conv-grouped", (4, 5, 5), lambda: [C(4, 6, 3, groups=2), nn.ReLU(), C(6, 6, 3, groups=6), nn.ReLU()], "chain")
layers("conv-1x1-large-kernel", (3, 3, 3), lambda: [C(3, 4, 1), nn.ReLU(), C(4, 2, 5, padding=2), nn.ReLU()], "chain")
layers("conv-same", (2, 5, 6), lambda: [C(2, 3, (2, 3), padding="same", dilation=(1, 2)), nn.ReLU()], "chain")
layers("conv-valid", (2, 5, 5), lambda: [C(2, 3, 3, padding="valid"), nn.ReLU()], "chain")
for _mode in ("circular", "reflect", "replicate"):
    layers(
        f"conv2d-{_mode}", (2, 5, 5), lambda m=_mode: [C(2, 3, 3, padding=(2, 1), padding_mode=m), nn.ReLU()], "chain"
    )
    layers(
        f"conv1d-{_mode}", (2, 7), lambda m=_mode: [nn.Conv1d(2, 3, 3, padding=2, padding_mode=m), nn.ReLU()], "chain"
    )
layers(
    "conv3d-circular",
    (1, 4, 4, 3),
    lambda: [nn.Conv3d(1, 2, 3, padding=1, padding_mode="circular"), nn.ReLU()],
    "chain",
)
layers(
    "transpose1d",
    (3, 4),
    lambda: [nn.ConvTranspose1d(3, 2, 3, stride=2, padding=1, output_padding=1), nn.ReLU()],
    "chain",
)
layers(
    "transpose2d",
    (4, 3, 3),
    lambda: [nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, output_padding=(1, 0), groups=2, dilation=2), nn.ReLU()],
    "chain",
)
layers("transpose3d", (2, 2, 2, 2), lambda: [nn.ConvTranspose3d(2, 2, 2, stride=2), nn.ReLU()], "chain")

# --- BatchNorm in eval --------------------------------------------------------------------------------------------
layers("bn1d", (5,), lambda: [nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.BatchNorm1d(6)], "chain")
layers("bn1d-sequence", (3, 5), lambda: [nn.Conv1d(3, 4, 2), nn.BatchNorm1d(4), nn.ReLU()], "chain")
layers("bn2d-before", (2, 5, 5), lambda: [C(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU()], "chain")
layers(
    "bn2d-after-first",
    (2, 5, 5),
    lambda: [nn.BatchNorm2d(2, affine=False, eps=0.1), C(2, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)],
    "chain",
)
layers("bn3d", (1, 3, 3, 3), lambda: [nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.ReLU()], "chain")


# --- parametrised weights -----------------------------------------------------------------------------------------
def _unsettled_spectral(module: nn.Module) -> nn.Module:
    """In use after a few training steps only: its σ is not the norm yet."""
    module.train()(torch.randn(2, module.in_features))
    return module.eval()


layers(
    "weight-norm",
    (5,),
    lambda: [
        parametrizations.weight_norm(nn.Linear(5, 6)),
        nn.ReLU(),
        parametrizations.weight_norm(nn.Linear(6, 6), dim=None),
        nn.ReLU(),
    ],
    "chain",
)
layers(
    "weight-norm-old",
    (2, 5, 5),
    lambda: [nn.utils.weight_norm(C(2, 3, 3)), nn.ReLU(), nn.utils.weight_norm(C(3, 3, 2), dim=1), nn.ReLU()],
    "chain",
)
layers(
    "spectral-norm",
    (5,),
    lambda: [_unsettled_spectral(parametrizations.spectral_norm(nn.Linear(5, 6))), nn.ReLU()],
    "chain",
)
layers(
    "spectral-norm-old",
    (5,),
    lambda: [_unsettled_spectral(nn.utils.spectral_norm(nn.Linear(5, 6))), nn.ReLU()],
    "chain",
)
for _map in ("householder", "matrix_exp", "cayley"):
    layers(
        f"orthogonal-{_map}",
        (5,),
        lambda m=_map: [parametrizations.orthogonal(nn.Linear(5, 5), orthogonal_map=m), nn.ReLU()],
        "chain",
    )
