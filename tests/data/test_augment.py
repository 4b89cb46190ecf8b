from __future__ import annotations

import math

import pytest
import torch

from lipcert.data import Augment, as_float
from lipcert.errors import DataError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int = 64, shape: tuple[int, int, int] = (3, 10, 8)) -> torch.Tensor:
    # No zeros, so that black can only be what came in from outside.
    return torch.randint(1, 256, (count, *shape), dtype=torch.uint8, generator=generator(9))


def moved(image: torch.Tensor, down: int, right: int, flip: bool) -> torch.Tensor:
    """Do the same to one image (C, H, W), in the slowest way."""
    image = image.flip(2) if flip else image
    out = torch.zeros_like(image)
    _, height, width = image.shape
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                out[:, row, column] = image[:, row - down, column - right]
    return out


def matches(image: torch.Tensor, result: torch.Tensor, most: tuple[int, int]) -> list[tuple[int, int, bool]]:
    return [
        (down, right, flip)
        for down in range(-most[0], most[0] + 1)
        for right in range(-most[1], most[1] + 1)
        for flip in (False, True)
        if torch.equal(moved(image, down, right, flip), result)
    ]


def test_every_image_is_flipped_and_moved_by_whole_pixels() -> None:
    images = noise()
    out = Augment(flip=True, shift=0.2)(images, generator())
    assert out.dtype == torch.float32
    found = []
    for image, result in zip(as_float(images), out, strict=True):
        (change,) = matches(image, result, (2, 2))  # exactly one explains it
        found.append(change)
    assert {change[2] for change in found} == {False, True}
    assert {change[0] for change in found} == {change[1] for change in found} == {-2, -1, 0, 1, 2}


def test_moves_are_uniform_and_independent() -> None:
    images = torch.zeros(20_000, 1, 7, 7, dtype=torch.uint8)
    images[:, 0, 3, 3] = 255
    out = Augment(shift=1 / 7)(images, generator())
    counts = out.sum(dim=(0, 1))[2:5, 2:5]
    assert counts.sum() == 20_000
    # Nine cells of 1/9 each: a standard deviation is 44.
    assert (counts - 20_000 / 9).abs().max() < 200


def test_flips_are_one_half() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).expand(10_000, 1, 1, 2)
    out = Augment(flip=True)(images, generator())
    assert abs(float(out[:, 0, 0, 0].mean()) - 0.5) < 0.02


def test_bytes_and_floats_agree() -> None:
    images = noise()
    for augment in (Augment(), Augment(flip=True), Augment(flip=True, shift=0.3)):
        direct = augment(images, generator(5))
        assert torch.equal(direct, augment(as_float(images), generator(5)))
        assert augment(images.double() / 255, generator(5)).dtype == torch.float64
    turned = Augment(flip=True, shift=0.1, rotate=10)
    assert torch.equal(turned(images, generator(5)), turned(as_float(images), generator(5)))


@pytest.mark.parametrize(
    "augment", [Augment(), Augment(flip=True), Augment(shift=0.2), Augment(flip=True, shift=0.2, rotate=20)]
)
@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_what_every_result_keeps(augment: Augment, kind: torch.dtype) -> None:
    images = noise() if kind == torch.uint8 else as_float(noise())
    before = images.clone()
    first = augment(images, generator(1))
    assert torch.equal(images, before)
    assert first.data_ptr() != images.data_ptr()
    assert first.is_contiguous()
    assert first.min() >= 0
    assert first.max() <= 1
    assert torch.equal(first, augment(images, generator(1)))
    if augment != Augment():
        assert not torch.equal(first, augment(images, generator(2)))
    last = augment(images.contiguous(memory_format=torch.channels_last), generator(1))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(last, first, atol=1e-6)


def test_switching_something_on_leaves_the_other_draws_alone() -> None:
    images = noise()
    mirrored = Augment(flip=True)(images, generator())
    both = Augment(flip=True, shift=0.2)(images, generator())
    for image, one, two in zip(as_float(images), mirrored, both, strict=True):
        assert matches(image, one, (0, 0))[0][2] == matches(image, two, (2, 2))[0][2]


def test_the_global_generator_is_not_used() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    Augment(flip=True, shift=0.2, rotate=5)(noise(), generator())
    assert torch.equal(torch.get_rng_state(), before)


def blob(row: float, column: float, height: int, width: int) -> torch.Tensor:
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    return torch.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 8)[None, None].double()


def centre(images: torch.Tensor) -> torch.Tensor:
    """Return the centre of mass (N, 2) relative to the middle, as (down, right)."""
    mass = images[:, 0]
    height, width = mass.shape[1:]
    rows = (mass.sum(2) * (torch.arange(height) - (height - 1) / 2)).sum(1)
    columns = (mass.sum(1) * (torch.arange(width) - (width - 1) / 2)).sum(1)
    return torch.stack([rows, columns], dim=1) / mass.sum(dim=(1, 2))[:, None]


@pytest.mark.parametrize(("height", "width"), [(40, 40), (40, 64)])
def test_turning_keeps_distances_and_angles_are_uniform(height: int, width: int) -> None:
    image = blob((height - 1) / 2, (width - 1) / 2 + 10, height, width)
    out = Augment(rotate=30)(image.repeat(4000, 1, 1, 1), generator())
    where = centre(out)
    assert (where.norm(dim=1) - 10).abs().max() < 0.05  # a circle even where the sides differ
    angles = torch.atan2(where[:, 0], where[:, 1]) * 180 / math.pi
    assert angles.abs().max() < 30.2
    assert torch.histc(angles, 6, -30, 30).sub(4000 / 6).abs().max() < 120


def test_shifts_are_uniform_and_flips_happen_when_turning() -> None:
    image = blob(19.5, 19.5, 40, 40)
    where = centre(Augment(shift=0.1, rotate=1e-6)(image.repeat(4000, 1, 1, 1), generator()))
    assert where.abs().max() < 4.05
    for axis in (0, 1):
        assert torch.histc(where[:, axis], 8, -4, 4).sub(500).abs().max() < 110
    assert abs(float(torch.corrcoef(where.T)[0, 1])) < 0.06
    right = blob(19.5, 29.5, 40, 40).repeat(2000, 1, 1, 1)
    where = centre(Augment(flip=True, rotate=5)(right, generator()))
    assert abs(float((where[:, 1] > 0).double().mean()) - 0.5) < 0.05
    assert (where.norm(dim=1) - 10).abs().max() < 0.05


def test_a_full_turn_of_nothing_is_the_image() -> None:
    images = as_float(noise())
    assert torch.allclose(Augment(rotate=1e-9)(images, generator()), images, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shift": -0.1}, "shift is a fraction of the side"),
        ({"shift": 1.0}, "less than 1; found 1.0"),
        ({"shift": 4}, "found 4"),
        ({"shift": math.nan}, "found nan"),
        ({"rotate": -1.0}, "rotate is an angle in degrees from 0 to 180"),
        ({"rotate": 181.0}, "found 181.0"),
        ({"rotate": math.inf}, "found inf"),
    ],
)
def test_bad_settings(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Augment(**arguments)  # type: ignore[arg-type]


def test_bad_images() -> None:
    for images in (torch.zeros(3, 4, 4), torch.zeros(1, 1, 2, 2, dtype=torch.int64), torch.zeros(1, 1, 2, 2).half()):
        with pytest.raises(DataError, match=r"Augment needs images of shape \(N, C, H, W\) in uint8"):
            Augment()(images, generator())
    with pytest.raises(DataError, match=r"shift=0.01 is less than half a pixel of a side of 10"):
        Augment(shift=0.01)(noise(), generator())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_does_the_same() -> None:
    images = noise()
    for augment in (Augment(), Augment(flip=True, shift=0.2)):
        assert torch.equal(augment(images.cuda(), generator()).cpu(), augment(images, generator()))
    turned = Augment(flip=True, shift=0.1, rotate=20)
    assert torch.allclose(turned(images.cuda(), generator()).cpu(), turned(images, generator()), atol=1e-4)
    own = torch.Generator("cuda").manual_seed(0)
    assert turned(images.cuda(), own).is_cuda
