from __future__ import annotations

import pytest
import torch

from lipcert.data import Dataset, split
from lipcert.errors import DataError


@pytest.fixture
def uneven() -> Dataset:
    """Classes of 60, 30, 9, 1 and no images."""
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor([60, 30, 9, 1]))
    labels = labels[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    images = torch.arange(100, dtype=torch.uint8).reshape(100, 1, 1, 1)
    return Dataset("uneven", "train", images, labels, tuple("abcde"))


def numbers(data: Dataset) -> list[int]:
    return data.images.flatten().tolist()


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 1 / 3, 0.5, 0.99])
def test_shares(uneven: Dataset, fraction: float) -> None:
    rest, held_out = split(uneven, fraction, seed=0)
    assert len(held_out) == round(100 * fraction)
    assert sorted(numbers(rest) + numbers(held_out)) == list(range(100))
    assert numbers(held_out) == sorted(numbers(held_out))
    for label, count in enumerate((60, 30, 9, 1, 0)):
        assert abs(int((held_out.labels == label).sum()) - fraction * count) < 1
    assert held_out.classes == rest.classes == uneven.classes
    labels = dict(zip(numbers(uneven), uneven.labels.tolist(), strict=True))
    assert held_out.labels.tolist() == [labels[number] for number in numbers(held_out)]


def test_it_follows_from_the_seed(uneven: Dataset) -> None:
    torch.manual_seed(1)
    first = numbers(split(uneven, 0.3, seed=1)[1])
    torch.manual_seed(2)
    assert first == numbers(split(uneven, 0.3, seed=1)[1])
    assert first != numbers(split(uneven, 0.3, seed=2)[1])


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, 1.5, 0.004, 0.996, float("nan")])
def test_no_part_is_empty(uneven: Dataset, fraction: float) -> None:
    with pytest.raises(DataError, match=f"a fraction of {fraction} of 100 images leaves a part empty"):
        split(uneven, fraction, seed=0)
