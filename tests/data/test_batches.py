from __future__ import annotations

import pytest
import torch

from lipcert.data import Augment, Batches, Dataset, as_float
from lipcert.data.batches import derived_generator
from lipcert.errors import DataError

Pair = tuple[torch.Tensor, torch.Tensor]
AUGMENT = Augment(flip=True, shift=0.2, rotate=10)


def same(first: list[Pair], second: list[Pair]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(first, second, strict=True)
    )


def test_in_order(dots: Dataset) -> None:
    batches = Batches(dots, 30, shuffle=False, seed=0)
    found = list(batches.epoch(0))
    assert len(batches) == len(found) == 4
    assert [len(y) for _, y in found] == [30, 30, 30, 10]
    assert torch.equal(torch.cat([x for x, _ in found]), as_float(dots.images))
    assert torch.equal(torch.cat([y for _, y in found]), dots.labels)
    assert same(found, list(batches.epoch(7)))
    assert found[0][0].dtype == torch.float32
    assert found[0][1].dtype == torch.int64


def test_shuffled(dots: Dataset) -> None:
    batches = Batches(dots, 30, shuffle=True, seed=0)
    keys = {image.numpy().tobytes(): label for image, label in zip(as_float(dots.images), dots.labels, strict=True)}
    orders = []
    for epoch in range(3):
        order = [(x.numpy().tobytes(), y) for xs, ys in batches.epoch(epoch) for x, y in zip(xs, ys, strict=True)]
        assert sorted(key for key, _ in order) == sorted(keys)  # each image once
        assert all(keys[key] == label for key, label in order)  # each with its own label
        orders.append([key for key, _ in order])
    assert orders[0] != orders[1] != orders[2]
    assert orders[0] != list(keys)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_any_batch_can_be_made_again(dots: Dataset, shuffle: bool, memory_format: torch.memory_format) -> None:
    def fresh(seed: int = 3) -> Batches:
        return Batches(dots, 16, shuffle=shuffle, seed=seed, augment=AUGMENT, memory_format=memory_format)

    whole = list(fresh().epoch(5))
    torch.manual_seed(123)  # of no influence
    other = fresh()
    list(other.epoch(0))
    for start in range(len(other) + 1):
        assert same(list(other.epoch(5, start=start)), whole[start:])
    assert not same(whole, list(fresh(4).epoch(5)))
    assert not same(whole, list(fresh().epoch(6)))
    # Two epochs at once do not disturb each other.
    mixed = [pair for both in zip(other.epoch(5), other.epoch(6), strict=True) for pair in both]
    assert same(mixed[::2], whole)


def test_batches_are_changed_differently(dots: Dataset) -> None:
    alike = Dataset("alike", "train", dots.images[:1].repeat(40, 1, 1, 1), dots.labels[:40], dots.classes)
    first, second = (x for x, _ in Batches(alike, 20, shuffle=False, seed=0, augment=AUGMENT).epoch(0))
    assert not torch.equal(first, second)


def test_channels_last(dots: Dataset) -> None:
    for shuffle in (False, True):
        for augment in (None, Augment(flip=True, shift=0.2), AUGMENT):
            options = {"shuffle": shuffle, "seed": 1, "augment": augment}
            plain = Batches(dots, 32, **options)  # type: ignore[arg-type]
            last = Batches(dots, 32, memory_format=torch.channels_last, **options)  # type: ignore[arg-type]
            for (x, y), (u, v) in zip(plain.epoch(0), last.epoch(0), strict=True):
                assert x.is_contiguous()
                assert u.is_contiguous(memory_format=torch.channels_last)
                assert torch.allclose(x, u, atol=1e-6)
                assert torch.equal(y, v)


def test_drop_last(dots: Dataset) -> None:
    batches = Batches(dots, 30, shuffle=True, seed=0, drop_last=True)
    assert len(batches) == 3
    assert [len(y) for _, y in batches.epoch(0)] == [30, 30, 30]
    assert len(Batches(dots, 500, shuffle=True, seed=0)) == 1
    assert len(Batches(dots, 100, shuffle=True, seed=0, drop_last=True)) == 1


def test_the_data_cannot_be_changed_through_a_batch(dots: Dataset) -> None:
    before = dots.fingerprint
    for x, y in Batches(dots, 30, shuffle=False, seed=0).epoch(0):
        x.zero_()
        y.zero_()
    assert Dataset("dots", "train", dots.images, dots.labels, dots.classes).fingerprint == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, found 0"),
        ({"batch_size": 2.5}, "found 2.5"),
        ({"batch_size": 101, "drop_last": True}, "leaves nothing of 100 images"),
        ({"memory_format": torch.preserve_format}, "must be contiguous or channels_last"),
    ],
)
def test_bad_options(dots: Dataset, options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Batches(dots, **{"batch_size": 10, "shuffle": True, "seed": 0, **options})  # type: ignore[arg-type]


def test_bad_positions_are_refused_at_once(dots: Dataset) -> None:
    batches = Batches(dots, 30, shuffle=True, seed=0)
    with pytest.raises(DataError, match="from 0 on, found -1"):
        batches.epoch(-1)
    for start in (-1, 5):
        with pytest.raises(DataError, match=f"a batch from 0 to 4, found {start}"):
            batches.epoch(0, start=start)
    assert list(batches.epoch(0, start=4)) == []


def test_derived_generators() -> None:
    seeds = {derived_generator(*parts).initial_seed() for parts in [(0, 1), (1, 0), (0, "1", 2), (0, 12), (0, 1, 2, 3)]}
    assert len(seeds) == 5
    assert derived_generator(0, 1).initial_seed() == 9034587163810503764  # runs are resumed with it


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_has_the_same_batches(dots: Dataset) -> None:
    options = {"shuffle": True, "seed": 1, "augment": Augment(flip=True, shift=0.2)}
    here = Batches(dots, 32, **options)  # type: ignore[arg-type]
    there = Batches(dots, 32, device="cuda", **options)  # type: ignore[arg-type]
    for (x, y), (u, v) in zip(here.epoch(2), there.epoch(2), strict=True):
        assert u.is_cuda
        assert torch.equal(x, u.cpu())
        assert torch.equal(y, v.cpu())
