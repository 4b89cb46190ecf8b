"""Architectures: numbers of weights worked out by hand, shapes, options, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from lipcert.errors import ConfigError, ShapeError
from lipcert.layers import HalfAbs
from lipcert.layers.activations import ACTIVATIONS
from lipcert.models import MaxMin, Normalize, available, build, options_of, register, registry


def weights(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def conv(inputs: int, outputs: int, kernel: int) -> int:
    return outputs * (inputs * kernel * kernel + 1)


def fc(inputs: int, outputs: int) -> int:
    return outputs * (inputs + 1)


MNIST, CIFAR, TINY = (1, 28, 28), (3, 32, 32), (3, 64, 64)
FOUR = conv(32, 32, 4) + conv(32, 64, 3) + conv(64, 64, 4)
EIGHT = conv(3, 64, 3) + conv(64, 64, 3) + conv(64, 64, 4) + conv(64, 128, 3) + conv(128, 128, 3)
EIGHT += conv(128, 128, 4) + conv(128, 256, 3) + conv(256, 256, 4)
RESIDUAL = conv(3, 16, 3) + 2 * conv(16, 16, 3)
RESIDUAL += conv(16, 32, 3) + conv(32, 32, 3) + conv(16, 32, 1)
RESIDUAL += conv(32, 64, 3) + conv(64, 64, 3) + conv(32, 64, 1) + fc(64, 10)

# Sides: 28 → 14 → 7 · 32 → 16 → 8 → 4 · 64 → 62 (or 64) → 30 (31) → 14 (14) → 6 (6).
COUNTS: list[tuple[str, tuple[int, ...], int, dict[str, Any], int]] = [
    ("4c3f", MNIST, 10, {}, conv(1, 32, 3) + FOUR + fc(64 * 7 * 7, 512) + fc(512, 512) + fc(512, 10)),
    ("4c3f", CIFAR, 10, {}, conv(3, 32, 3) + FOUR + fc(64 * 8 * 8, 512) + fc(512, 512) + fc(512, 10)),
    ("6c2f", CIFAR, 10, {}, conv(3, 32, 3) + FOUR + conv(64, 64, 3) + conv(64, 64, 4) + fc(1024, 512) + fc(512, 10)),
    ("8c2f", TINY, 200, {}, EIGHT + fc(256 * 6 * 6, 256) + fc(256, 200)),
    ("8c2f", TINY, 200, {"padding": "paper"}, EIGHT + fc(256 * 6 * 6, 256) + fc(256, 200)),
    ("mlp", (784,), 10, {"widths": [128, 64]}, fc(784, 128) + fc(128, 64) + fc(64, 10)),
    ("mlp", (1, 8, 8), 3, {"widths": []}, fc(64, 3)),
    ("resnet-small", CIFAR, 10, {"norm": False}, RESIDUAL),
    # BatchNorm: two for each channel where there was one bias.
    ("resnet-small", CIFAR, 10, {}, RESIDUAL + 16 + 32 + 3 * 32 + 3 * 64),
]


@pytest.mark.parametrize(("name", "shape", "classes", "options", "count"), COUNTS)
def test_counts_and_shapes(
    name: str, shape: tuple[int, ...], classes: int, options: dict[str, Any], count: int
) -> None:
    model = build(name, input_shape=shape, num_classes=classes, **options)
    assert weights(model) == count
    assert type(model) is nn.Sequential
    assert model.eval()(torch.zeros(2, *shape)).shape == (2, classes)
    assert not isinstance(list(model)[-1], nn.ReLU)


def test_published_counts() -> None:
    """The same numbers, as digits, so that a mistake in the formulas above shows."""
    assert weights(build("4c3f", input_shape=MNIST, num_classes=10)) == 1_974_762
    assert weights(build("6c2f", input_shape=CIFAR, num_classes=10)) == 733_866
    assert weights(build("8c2f", input_shape=TINY, num_classes=200)) == 4_342_984
    assert weights(build("resnet-small", input_shape=CIFAR, num_classes=10)) == 78_042


@pytest.mark.parametrize(
    ("padding", "sides"), [("code", [64, 62, 30, 30, 30, 14, 14, 6]), ("paper", [64, 64, 31, 31, 31, 14, 14, 6])]
)
def test_the_two_8c2f(padding: str, sides: list[int]) -> None:
    model = build("8c2f", input_shape=TINY, num_classes=200, padding=padding)
    x, found = torch.zeros(1, *TINY), []
    for layer in model.children():
        x = layer(x)
        if isinstance(layer, nn.Conv2d):
            found.append(x.shape[-1])
    assert found == sides


@pytest.mark.parametrize("name", ["4c3f", "6c2f", "8c2f", "resnet-small"])
@pytest.mark.parametrize("shape", [(1, 37, 41), (3, 29, 63)])
def test_sizes_that_strides_do_not_divide(name: str, shape: tuple[int, ...]) -> None:
    model = build(name, input_shape=shape, num_classes=7).eval()
    assert model(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", ["4c3f", "6c2f", "8c2f", "mlp", "resnet-small"])
def test_an_activation_follows_every_layer_but_the_last(name: str) -> None:
    model = build(name, input_shape=(3, 32, 32), num_classes=4, activation="tanh")
    acts = [m for m in model.modules() if isinstance(m, nn.Tanh)]
    layers = [
        m for path, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and "shortcut" not in path
    ]
    assert len(acts) == len(layers) - 1
    assert not any(isinstance(m, nn.ReLU) for m in model.modules())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_builds_and_learns(activation: str) -> None:
    for name in ("6c2f", "resnet-small", "mlp"):
        model = build(name, input_shape=(1, 16, 16), num_classes=4, activation=activation)
        model(torch.rand(4, 1, 16, 16)).square().sum().backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_models_keep_a_sample_apart_from_its_batch_in_eval_mode() -> None:
    torch.manual_seed(0)
    for name in available():
        narrow = {"widths": [4, 6, 8], "hidden": 8} if name.startswith("lipres") else {}  # eval() proves its norms
        model = build(name, input_shape=(1, 32, 32), num_classes=4, **narrow)
        model(torch.rand(8, 1, 32, 32))  # gives BatchNorm statistics of its own
        model.eval()
        x = torch.rand(3, 1, 32, 32)
        assert torch.allclose(model(x)[:1], model(x[:1]), atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- layers


def test_max_min_sorts_pairs_and_moves_no_distance() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 6, 2, 5)
    y = MaxMin()(x)
    assert y.shape == x.shape
    for i in range(3):
        pair = x[:, 2 * i : 2 * i + 2]
        assert torch.equal(y[:, 2 * i], pair.amin(1))
        assert torch.equal(y[:, 2 * i + 1], pair.amax(1))
    assert torch.equal(y.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1)) or torch.allclose(y.norm(), x.norm())
    other = torch.randn_like(x)
    assert (MaxMin()(other) - y).norm() <= (other - x).norm() * (1 + 1e-6)
    channels_last = x.to(memory_format=torch.channels_last)
    assert torch.equal(MaxMin()(channels_last), y)


@pytest.mark.parametrize("shape", [(2, 3), (4,), (1, 5, 2, 2)])
def test_max_min_needs_pairs(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="even number"):
        MaxMin()(torch.zeros(shape))


def test_half_abs_is_max_min_in_other_coordinates() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 6, 2, 5, dtype=torch.float64)
    y = HalfAbs()(x)
    assert torch.equal(y, torch.cat([x[:, :3], x[:, 3:].abs()], dim=1))
    # pairs (smaller, larger) of MaxMin have the sum and difference of the values here, over the root of two
    pairs = torch.stack([x[:, :3] - x[:, 3:], x[:, :3] + x[:, 3:]], dim=2).flatten(1, 2) / 2**0.5
    sorted_pairs = torch.stack([y[:, :3] - y[:, 3:], y[:, :3] + y[:, 3:]], dim=2).flatten(1, 2) / 2**0.5
    assert torch.allclose(MaxMin()(pairs), sorted_pairs, atol=1e-15)
    assert torch.equal(HalfAbs()(x.to(memory_format=torch.channels_last)), y)
    grads = list[torch.Tensor]()
    for training in (True, False):  # two forms, one of which has the shorter way back
        x.grad = None
        found = HalfAbs().train(training)(x.requires_grad_())
        assert torch.equal(found, y)
        (found * torch.arange(found.numel()).reshape(found.shape)).sum().backward()
        assert x.grad is not None
        grads.append(x.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("shape", [(2, 3), (4,), (1, 5, 2, 2)])
def test_half_abs_needs_two_halves(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="even number"):
        HalfAbs()(torch.zeros(shape))


def test_normalisation_is_the_first_layer_and_takes_no_weights() -> None:
    torch.manual_seed(0)
    plain = build("6c2f", input_shape=CIFAR, num_classes=10)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
    model = build("6c2f", input_shape=CIFAR, num_classes=10, mean=mean, std=std)
    first = next(iter(model.children()))
    assert isinstance(first, Normalize)
    assert weights(model) == weights(plain)
    buffers = {"normalize.mean", "normalize.std"}
    assert set(model.state_dict()) == set(plain.state_dict()) | buffers
    model.load_state_dict(plain.state_dict(), strict=False)
    x = torch.rand(2, *CIFAR)
    by_hand = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    assert torch.allclose(model(x), plain(by_hand), atol=1e-6)


@pytest.mark.parametrize(("shape", "mean"), [((5,), (0, 1, 2, 3, 4)), ((5,), 0.5), ((2, 3), (1, 2)), ((1, 4, 4), 0.5)])
def test_normalisation_of_other_shapes(shape: tuple[int, ...], mean: Any) -> None:
    model = build("mlp", input_shape=shape, num_classes=2, mean=mean, std=0.5)
    x = torch.rand(3, *shape)
    centre = torch.tensor(mean, dtype=torch.float32).reshape(-1, *(1,) * (len(shape) - 1))
    assert torch.allclose(model[0](x), (x - centre) / 0.5)


@pytest.mark.parametrize(
    ("mean", "std"),
    [(0.5, 0.0), (0.5, -1.0), (float("nan"), 1.0), (0.5, float("inf")), ([], 1.0), ([0, 0], [1, 1, 1]), ("0.5", 1)],
)
def test_normalisations_that_are_refused(mean: Any, std: Any) -> None:
    with pytest.raises(ConfigError, match="normalisation"):
        Normalize(mean, std)


# -------------------------------------------------------------------------------------------------------- registry


@pytest.fixture
def clean_registry() -> Iterator[None]:
    before = dict(registry._BUILDERS)
    yield
    registry._BUILDERS.clear()
    registry._BUILDERS.update(before)


def test_names() -> None:
    assert {"4c3f", "6c2f", "8c2f", "mlp", "resnet-small"} <= set(available())
    assert options_of("mlp") == {"widths": (128, 64), "activation": "relu"}


@pytest.mark.usefixtures("clean_registry")
def test_a_model_of_one_s_own() -> None:
    class Net(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.fc = nn.Linear(4, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.fc(x)
            return out

    @register("mine")
    def mine(*, input_shape: tuple[int, ...], num_classes: int, scale: int = 1) -> nn.Module:
        return Net(num_classes * scale)

    assert isinstance(build("mine", input_shape=(4,), num_classes=3), Net)
    model = build("mine", input_shape=(4,), num_classes=3, scale=2, mean=0.5, std=0.5)
    assert [name for name, _ in model.named_children()] == ["normalize", "net"]
    assert model(torch.zeros(1, 4)).shape == (1, 6)
    with pytest.raises(ConfigError, match="registered already"):
        register("mine")(mine)


@pytest.mark.usefixtures("clean_registry")
def test_normalisation_keeps_layers_that_are_there_twice() -> None:
    @register("twice")
    def twice(*, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        inner, act = nn.Linear(4, 4), nn.ReLU()
        return nn.Sequential(inner, act, inner, act, nn.Linear(4, num_classes))

    plain = build("twice", input_shape=(4,), num_classes=3)
    model = build("twice", input_shape=(4,), num_classes=3, mean=0.5, std=0.5)
    assert list(model._modules) == ["normalize", "0", "1", "2", "3", "4"]
    assert model[1] is model[3]
    model.load_state_dict(plain.state_dict(), strict=False)
    x = torch.rand(5, 4)
    assert torch.equal(model(x), plain((x - 0.5) / 0.5))


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("4c3", {}, "unknown model '4c3'; did you mean '4c3f'"),
        ("MLP", {}, "unknown model 'MLP'; did you mean 'mlp'. there are: 4c3f"),
        ("vit", {}, "unknown model 'vit'; there are: 4c3f"),
        ("mlp", {"width": [3]}, "no option 'width'; did you mean 'widths'"),
        ("mlp", {"widths": 3}, "widths must be a list"),
        ("mlp", {"widths": [3, 0]}, "positive integers"),
        ("mlp", {"widths": [True]}, "positive integers"),
        ("mlp", {"widths": "34"}, "widths must be a list"),
        (
            "mlp",
            {"width": [3], "activations": "relu"},
            "did you mean 'widths'. did you mean 'activation'. there are: widths",
        ),
        ("mlp", {"activation": "rellu"}, "unknown activation 'rellu'; did you mean 'relu'"),
        ("mlp", {"activation": "ReLU"}, "unknown activation 'ReLU'; did you mean 'relu'. there are: elu"),
        ("mlp", {"activation": 3}, "unknown activation 3; there are: elu"),
        ("mlp", {"activation": "maxmin", "widths": [5]}, "5 is odd"),
        ("mlp", {"activation": "half-abs", "widths": [5]}, "5 is odd"),
        ("mlp", {"num_classes": 1}, "num_classes"),
        ("mlp", {"num_classes": 2.0}, "num_classes"),
        ("mlp", {"input_shape": ()}, "input_shape"),
        ("mlp", {"input_shape": (3, -1)}, "input_shape must be a list of positive integers; got .3, -1."),
        ("mlp", {"input_shape": "34"}, "input_shape must be a list"),
        ("mlp", {"mean": 0.5}, "both mean and std"),
        ("mlp", {"mean": (0, 0), "std": (1, 1)}, "for 2 channels"),
        ("6c2f", {"input_shape": (784,)}, "takes images"),
        ("6c2f", {"padding": "code"}, "no option 'padding'"),
        ("8c2f", {"padding": "papers"}, "'code' or 'paper'"),
        ("8c2f", {"input_shape": (1, 8, 8)}, "too deep for images of 8×8"),
        ("8c2f", {"input_shape": (1, 64, 8)}, "too deep for images of 64×8"),
        ("resnet-small", {"input_shape": (8, 8)}, "takes images"),
        ("resnet-small", {"widths": [8, 8]}, "a list of 3 positive integers"),
        ("resnet-small", {"blocks": [1, True, 1]}, "blocks must be a list of 3 positive integers"),
        ("resnet-small", {"blocks": [1, 0, 1]}, "a list of 3 positive integers"),
        ("resnet-small", {"blocks": 2}, "a list of 3 positive integers"),
        ("resnet-small", {"norm": "yes"}, "true or false"),
        ("resnet-small", {"activation": "maxmin", "widths": [7, 8, 8]}, "7 is odd"),
    ],
)
def test_what_is_refused(name: str, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(name, **{"input_shape": (1, 16, 16), "num_classes": 10, **arguments})


@pytest.mark.parametrize("activation", ["relu", "half-abs", "maxmin"])
@pytest.mark.parametrize("name", ["4c3f", "6c2f", "8c2f"])
def test_an_orthogonal_start_is_scaled_isometries(name: str, activation: str) -> None:
    shape = (3, 64, 64) if name == "8c2f" else (3, 28, 28)
    net = build(name, input_shape=shape, num_classes=10, init="orthogonal", activation=activation)
    layers = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    for layer in layers:
        matrix = layer.weight.detach().flatten(1)
        values = torch.linalg.svdvals(matrix)
        scale = 1.0 if layer is layers[-1] or activation != "relu" else 2**0.5
        assert float(values[0]) == pytest.approx(scale, rel=1e-4)
        assert float(values[values > 1e-3].min()) == pytest.approx(scale, rel=1e-4)
        assert layer.bias is not None
        assert not layer.bias.any()


def test_another_start_is_refused() -> None:
    with pytest.raises(ConfigError, match="init must be 'torch' or 'orthogonal'"):
        build("4c3f", input_shape=(1, 28, 28), num_classes=10, init="zeros")
