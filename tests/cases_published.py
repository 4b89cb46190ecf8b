"""Networks after published descriptions, at a reduced size: what people bring."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cases_blocks import Residual
from catalogue import case

__all__ = ["PUBLISHED"]


def _lenet5() -> nn.Module:
    """LeCun et al. 1998, with tanh and average pooling."""
    return nn.Sequential(
        nn.Conv2d(1, 2, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2),
        nn.Conv2d(2, 3, 3), nn.Tanh(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3),
    )  # fmt: skip


def _vgg11() -> nn.Module:
    """Simonyan and Zisserman 2014, configuration A with BatchNorm: eight convolutions, max pooling, dropout."""
    layers: list[nn.Module] = []
    inputs = 1
    for width in (1, "M", 2, "M", 2, 2, "M", 2, 2, "M", 2, 2):
        if width == "M":
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
            continue
        assert isinstance(width, int)
        layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        inputs = width
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(2, 4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 4), nn.ReLU(), nn.Dropout(), nn.Linear(4, 3),
    )  # fmt: skip


def _resnet18() -> nn.Module:
    """He et al. 2016: a stem with max pooling, four stages of two basic blocks, global average pooling."""
    stem = [nn.Conv2d(1, 1, 3, 1, 1, bias=False), nn.BatchNorm2d(1), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    stages: list[nn.Module] = []
    for i, (inputs, width) in enumerate(((1, 1), (1, 2), (2, 2), (2, 2))):
        stages += [Residual(inputs, width, stride=1 if i == 0 else 2, inplace=True), Residual(width, width)]
    return nn.Sequential(*stem, *stages, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))


class _UNet(nn.Module):
    """Ronneberger et al. 2015: two levels of two convolutions, max pooling down, transposed convolutions up, skips."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.low, self.last = self._double(1, 2), self._double(2, 2), self._double(4, 2)
        self.up, self.out = nn.ConvTranspose2d(2, 2, 2, 2), nn.Conv2d(2, 1, 1)

    @staticmethod
    def _double(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1), nn.ReLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        skip = self.first(x)
        low = self.low(F.max_pool2d(skip, 2))
        return self.out(self.last(torch.cat([skip, self.up(low)], 1)))


class _DenseNet(nn.Module):
    """Huang et al. 2017: two dense blocks of BatchNorm–ReLU–convolution, a transition with average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 3, padding=1)
        self.block1 = nn.ModuleList(self._layer(2 + i) for i in range(2))
        self.transition = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.AvgPool2d(2))
        self.block2 = nn.ModuleList(self._layer(2 + i) for i in range(2))
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 3)

    @staticmethod
    def _layer(inputs: int) -> nn.Sequential:
        return nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, 1, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.block1:
            x = torch.cat([x, layer(x)], 1)
        x = self.transition(x)
        for layer in self.block2:
            x = torch.cat([x, layer(x)], 1)
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


class _Mixer(nn.Module):
    """Tolstikhin et al. 2021 without LayerNorm: patches, then mixing of tokens and of channels in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 3, 2, 2)
        self.tokens = nn.ModuleList(self._mlp(4, 3) for _ in range(2))
        self.channels = nn.ModuleList(self._mlp(3, 4) for _ in range(2))
        self.head = nn.Linear(3, 3)

    @staticmethod
    def _mlp(size: int, hidden: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, size))

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        for tokens, channels in zip(self.tokens, self.channels, strict=True):
            y = y + tokens(y.transpose(1, 2)).transpose(1, 2)
            y = y + channels(y)
        return self.head(y.mean(1))


def _audio() -> nn.Module:
    """M5 of Dai et al. 2017: strided 1-D convolutions on a waveform, BatchNorm, max pooling, a mean over time."""
    return nn.Sequential(
        nn.Conv1d(1, 2, 8, 2, 3), nn.BatchNorm1d(2), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(2, 3, 3, padding=1), nn.BatchNorm1d(3), nn.ReLU(), nn.MaxPool1d(2),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(3, 3),
    )  # fmt: skip


def _policy() -> nn.Module:
    """The actor of TD3 (Fujimoto et al. 2018): an MLP whose actions are squashed by tanh."""
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2), nn.Tanh())


class _Denoiser(nn.Module):
    """DnCNN of Zhang et al. 2017: convolutions with BatchNorm estimate the noise, which is taken off."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(),
            nn.Conv2d(2, 2, 3, padding=1, bias=False), nn.BatchNorm2d(2), nn.ReLU(),
            nn.Conv2d(2, 1, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return x - self.body(x)


def _mobilenet() -> nn.Module:
    """MobileNetV2 of Sandler et al. 2018: inverted residuals of 1×1, depthwise and 1×1 convolutions, ReLU6."""

    class Inverted(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            wide = 2 * inputs
            self.body = nn.Sequential(
                nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
                nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False), nn.BatchNorm2d(wide), nn.ReLU6(),
                nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs),
            )  # fmt: skip
            self.skip = stride == 1 and inputs == outputs

        def forward(self, x: Tensor) -> Tensor:
            return x + self.body(x) if self.skip else self.body(x)

    return nn.Sequential(
        nn.Conv2d(1, 2, 3, 1, 1, bias=False), nn.BatchNorm2d(2), nn.ReLU6(), Inverted(2, 2, 1), Inverted(2, 3, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(3, 3),
    )  # fmt: skip


class _Elman(nn.Module):
    """Elman 1990: a recurrent cell with tanh, written out for four steps; the weights are the same in each."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.back, self.head = nn.Linear(2, 3), nn.Linear(3, 3, bias=False), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.into(x[:, 0]))
        for t in range(1, x.shape[1]):
            h = torch.tanh(self.into(x[:, t]) + self.back(h))
        return self.head(h)


class _Siamese(nn.Module):
    """Bromley et al. 1993: two inputs, given as one by concatenation, through the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.tower, self.head = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1)
        return self.head((self.tower(left) - self.tower(right)).abs())


def _video() -> nn.Module:
    """C3D of Tran et al. 2015: 3-D convolutions and max pooling."""
    return nn.Sequential(
        nn.Conv3d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool3d((1, 2, 2)),
        nn.Conv3d(2, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2, 3),
    )  # fmt: skip


PUBLISHED: dict[str, str] = {
    "published-lenet5": "LeNet-5",
    "published-vgg11": "VGG-11 with BatchNorm",
    "published-resnet18": "ResNet-18",
    "published-unet": "U-Net",
    "published-densenet": "DenseNet",
    "published-mixer": "MLP-Mixer without LayerNorm",
    "published-audio": "M5, a 1-D audio network",
    "published-policy": "TD3's actor, a control policy",
    "published-denoiser": "DnCNN, a denoiser",
    "published-mobilenet": "MobileNetV2",
    "published-elman": "Elman's recurrent network, unrolled",
    "published-siamese": "a Siamese network, two inputs concatenated",
    "published-video": "C3D, a video network",
}

case("published-lenet5", (1, 8, 8), _lenet5, "chain")
case("published-vgg11", (1, 4, 4), _vgg11)
case("published-resnet18", (1, 6, 6), _resnet18)
case("published-unet", (1, 4, 4), _UNet, "image")
case("published-densenet", (1, 4, 4), _DenseNet)
case("published-mixer", (1, 4, 4), _Mixer)
case("published-audio", (1, 24), _audio)
case("published-policy", (5,), _policy, "chain")
case("published-denoiser", (1, 4, 4), _Denoiser, "image")
case("published-mobilenet", (1, 4, 4), _mobilenet)
case("published-elman", (4, 2), _Elman)
case("published-siamese", (6,), _Siamese)
case("published-video", (1, 2, 4, 4), _video)
