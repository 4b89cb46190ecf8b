from __future__ import annotations

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch

from lipcert.data import Dataset, as_float
from lipcert.errors import DataError


def test_as_float_divides_exactly() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    expected = np.arange(256, dtype=np.float32) / np.float32(255)
    assert as_float(every).numpy().tobytes() == expected.tobytes()
    assert every.dtype == torch.uint8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_as_float_divides_exactly_on_a_gpu() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(as_float(every.cuda()).cpu(), as_float(every))


def test_as_float_keeps_the_memory_format_and_refuses_floats() -> None:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    assert as_float(images).is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(DataError, match=r"needs uint8 images, found torch\.float32"):
        as_float(torch.zeros(1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "val"}, "unknown split 'val'"),
        ({"images": torch.zeros(100, 3, 8, 6)}, r"images must be uint8 .* found torch\.float32"),
        ({"images": torch.zeros(100, 3, 8, dtype=torch.uint8)}, r"shape \(100, 3, 8\)"),
        ({"images": torch.zeros(0, 3, 8, 6, dtype=torch.uint8)}, "nothing empty"),
        ({"images": torch.zeros(99, 3, 8, 6, dtype=torch.uint8)}, "99 images but 100 labels"),
        ({"labels": torch.zeros(100, dtype=torch.int32)}, r"labels must be int64 .* torch\.int32"),
        ({"labels": torch.zeros(100, 1, dtype=torch.int64)}, r"shape \(100, 1\)"),
        ({"labels": torch.full((100,), 4)}, r"labels run from 4 to 4, outside 0 to 3 \(4 classes\)"),
        ({"labels": torch.full((100,), -1)}, "from -1 to -1"),
        ({"classes": ()}, "0 classes"),
    ],
)
def test_what_does_not_fit_is_refused(dots: Dataset, change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(dots, **change)


def test_attributes(dots: Dataset) -> None:
    assert len(dots) == 100
    assert dots.input_shape == (3, 8, 6)
    assert dots.num_classes == 4
    assert repr(dots) == "Dataset(dots, train: 100 images of 3x8x6, 4 classes, cpu)"
    with pytest.raises(FrozenInstanceError):
        dots.name = "other"  # type: ignore[misc]


def test_images_become_contiguous(dots: Dataset) -> None:
    strided = replace(dots, images=dots.images.contiguous(memory_format=torch.channels_last))
    assert strided.images.is_contiguous()
    assert strided.fingerprint == dots.fingerprint


def test_the_fingerprint_depends_on_shape_pixels_and_labels(dots: Dataset) -> None:
    pixels = dots.images.clone()
    pixels[5, 1, 2, 3] ^= 1
    others = [
        replace(dots, images=pixels),
        replace(dots, images=dots.images.reshape(100, 3, 6, 8)),
        replace(dots, labels=dots.labels.flip(0)),
    ]
    assert len({data.fingerprint for data in (dots, *others)}) == 4
    assert replace(dots, name="other").fingerprint == dots.fingerprint
    one = Dataset("x", "test", torch.tensor([[[[7]]]], dtype=torch.uint8), torch.tensor([0]), ("a",))
    # SHA-256 of b"(1, 1, 1, 1)", 07 and eight zero bytes: it is written into results, so it must never
    # change.
    assert one.fingerprint == "5210acbaf082325b1118c8399833a9496b489404faa50b435707c174bd5c82cd"


def test_subset_takes_slices_integers_and_masks(dots: Dataset) -> None:
    for chosen, expected in [
        (slice(3, 9, 2), [3, 5, 7]),
        (slice(2, None, -1), [2, 1, 0]),
        (slice(-2, 1000), [98, 99]),
        ([4, 4, -1], [4, 4, 99]),
        (range(2), [0, 1]),
        (torch.tensor([1, 0], dtype=torch.uint8), [1, 0]),
        (torch.arange(100) > 97, [98, 99]),
    ]:
        part = dots.subset(chosen)
        assert torch.equal(part.images, dots.images[expected])
        assert torch.equal(part.labels, dots.labels[expected])
    assert dots.subset(slice(10)).images.data_ptr() == dots.images.data_ptr()


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([100], "index 100 is outside its 100 images"),
        ([-101], "index -101 is outside"),
        ([0.5], "must be a list of integers"),
        (["a"], "not integers"),
        ([[1]], r"shape \(1, 1\)"),
        ([True, False], "bool mask of shape"),
        ([], "no image is left"),
        (slice(5, 5), "no image is left"),
        (torch.zeros(100, dtype=torch.bool), "no image is left"),
        (slice(0, 9, 0), "not a slice of integers"),
        (slice(0.5, 2), "not a slice of integers"),
    ],
)
def test_subset_refuses(dots: Dataset, indices: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        dots.subset(indices)  # type: ignore[arg-type]


def test_to(dots: Dataset) -> None:
    assert dots.to("cpu") is dots


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_to_a_gpu(dots: Dataset) -> None:
    moved = dots.to("cuda")
    assert moved.images.is_cuda
    assert moved.labels.is_cuda
    assert moved.fingerprint == dots.fingerprint
    assert moved.subset([3, 1]).labels.tolist() == [3, 1]
    with pytest.raises(DataError, match="images are on cuda:0 but labels on cpu"):
        replace(dots, images=moved.images)
