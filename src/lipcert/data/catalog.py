"""The data sets that can be loaded by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from lipcert.errors import DataError

from .cifar import CIFAR10, CIFAR100, CifarLayout, read_cifar
from .dataset import Dataset, first_whole
from .digits import read_digits
from .download import download
from .idx import find_idx, read_idx_pair
from .imagefolder import image_folder
from .registry import DatasetInfo, Request, check_published, register
from .tiny_imagenet import read_tiny_imagenet, word_net_ids

__all__: list[str] = []

_DIGITS = DatasetInfo(
    name="digits",
    title="Optical digits 8x8 (UCI, from scikit-learn)",
    layout="comes with scikit-learn (pip install 'lipcert[demo]'); every fifth image is a test image",
    citation="CC BY 4.0; Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI 1998",
    shape=(1, 8, 8),
    num_classes=10,
    sizes={"train": 1437, "test": 360},
)

_MNIST = DatasetInfo(
    name="mnist",
    title="MNIST",
    layout="MNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte, or the same with .gz",
    citation="CC BY-SA 3.0; LeCun, Cortes & Burges, The MNIST database of handwritten digits, 1998",
    shape=(1, 28, 28),
    num_classes=10,
    sizes={"train": 60_000, "test": 10_000},
    downloadable=True,
    fingerprints={
        "train": "71d3be42f93ad20da73bb4a9744d0bebdaa6832be56dc010e21940e72c4c8b1e",
        "test": "4718853ea946af656684509414983beff2e65cf414265c27966161014c003b8b",
    },
)

_FASHION = DatasetInfo(
    name="fashion-mnist",
    title="Fashion-MNIST",
    layout="FashionMNIST/raw/{train,t10k}-{images-idx3,labels-idx1}-ubyte, or the same with .gz",
    citation="MIT; Xiao, Rasul & Vollgraf, Fashion-MNIST, arXiv:1708.07747",
    shape=(1, 28, 28),
    num_classes=10,
    sizes={"train": 60_000, "test": 10_000},
    downloadable=True,
    fingerprints={
        "train": "a8007d7be041707b663947cf4c2d8a73d1704ccde85043273b866d5181bde6c2",
        "test": "3581bf52f521803120533f28e81ae934decd1771980630083c739dc6da7d3bc6",
    },
)

_CIFAR10 = DatasetInfo(
    name="cifar10",
    title="CIFAR-10",
    layout="cifar-10-batches-bin/, cifar-10-binary.tar.gz, cifar-10-batches-py/ or cifar-10-python.tar.gz",
    citation="no license stated; Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
    shape=(3, 32, 32),
    num_classes=10,
    sizes={"train": 50_000, "test": 10_000},
    downloadable=True,
)

_CIFAR100 = DatasetInfo(
    name="cifar100",
    title="CIFAR-100",
    layout="cifar-100-binary/, cifar-100-binary.tar.gz, cifar-100-python/ or cifar-100-python.tar.gz",
    citation="no license stated; Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009",
    shape=(3, 32, 32),
    num_classes=100,
    sizes={"train": 50_000, "test": 10_000},
    downloadable=True,
)

_TINY = DatasetInfo(
    name="tiny-imagenet-200",
    title="Tiny-ImageNet",
    layout="tiny-imagenet-200/ with train/WNID/images, val/images, val/val_annotations.txt and wnids.txt",
    citation="ImageNet's terms (non-commercial research); Le & Yang, Tiny ImageNet, Stanford CS 231N 2015",
    shape=(3, 64, 64),
    num_classes=200,
    sizes={"train": 100_000, "test": 10_000},
    downloadable=True,
)

_TINY_PART = DatasetInfo(
    name="tiny-imagenet-200:CLASSES",
    title="so many classes of Tiny-ImageNet, evenly spaced in the order of their WordNet ids",
    layout=_TINY.layout,
    citation=_TINY.citation,
    shape=(3, 64, 64),
    downloadable=True,
)

_FOLDER = DatasetInfo(
    name="folder:PATH",
    title="a folder of images",
    layout="PATH/{train,test or val}/CLASS/*.jpg, or PATH/CLASS/*.jpg (a fifth is then the test split)",
    citation="yours",
)

_CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@register(_DIGITS)
def _digits(request: Request) -> Dataset:
    return read_digits(request.split)


@register(_MNIST)
def _mnist(request: Request) -> Dataset:
    folders = ("MNIST/raw", "MNIST", "mnist/raw", "mnist", ".")
    return _read_idx(request, _MNIST, folders, tuple("0123456789"))


@register(_FASHION)
def _fashion_mnist(request: Request) -> Dataset:
    folders = ("FashionMNIST/raw", "FashionMNIST", "fashion-mnist/raw", "fashion-mnist", ".")
    return _read_idx(request, _FASHION, folders, _CLOTHES)


@register(_CIFAR10)
def _cifar10(request: Request) -> Dataset:
    return _read_cifar(request, _CIFAR10, CIFAR10)


@register(_CIFAR100)
def _cifar100(request: Request) -> Dataset:
    return _read_cifar(request, _CIFAR100, CIFAR100)


@register(_TINY)
def _tiny_imagenet(request: Request) -> Dataset:
    return _read_tiny_imagenet(request, None)


@register(_TINY_PART)
def _some_classes(request: Request) -> Dataset:
    most = _TINY.num_classes or 0
    if not re.fullmatch("[1-9][0-9]{0,2}", request.argument) or not 2 <= int(request.argument) < most:
        raise DataError(
            f"'{_TINY.name}:{request.argument[:20]}': after the colon comes how many classes, 2 to {most - 1}, for "
            f"example {_TINY.name}:10; all {most} are {_TINY.name}"
        )
    count = int(request.argument)
    found, ids = _read_tiny_imagenet(request, count), len(word_net_ids(request.root / _TINY.name))
    if ids != most:
        raise DataError(f"{request.root / _TINY.name}: its wnids.txt has {ids} classes, {_TINY.title} {most}")
    sizes = {split: size // most * count for split, size in _TINY.sizes.items()}
    check_published(replace(_TINY, num_classes=count, sizes=sizes), found, request.root)
    return found


def _read_tiny_imagenet(request: Request, classes: int | None) -> Dataset:
    folder = request.root / _TINY.name
    read = partial(read_tiny_imagenet, folder, request.split, classes=classes, cache_root=request.root)
    if not folder.is_dir() or not request.download:
        return _located(request, _TINY, lambda: read() if folder.is_dir() else None)
    try:
        return read()
    except DataError as error:
        raise DataError(f"{error}. To have the data set fetched again, delete {folder}") from error


@register(_FOLDER)
def _folder(request: Request) -> Dataset:
    if not request.argument:
        raise DataError("'folder:' needs a path after the colon, for example folder:flowers")
    folder = request.root / Path(request.argument).expanduser()
    return image_folder(folder, request.split, cache_root=request.root)


def _read_idx(request: Request, info: DatasetInfo, folders: tuple[str, ...], classes: tuple[str, ...]) -> Dataset:
    places = [request.root / folder for folder in folders]
    read = partial(read_idx_pair, name=info.name, split=request.split, classes=classes)
    return _located(
        request, info, lambda: first_whole(partial(read, *pair) for pair in find_idx(places, request.split))
    )


def _read_cifar(request: Request, info: DatasetInfo, layout: CifarLayout) -> Dataset:
    return _located(request, info, lambda: read_cifar(request.root, request.split, layout))


def _located(request: Request, info: DatasetInfo, look: Callable[[], Dataset | None]) -> Dataset:
    """Look for a data set; if it is not there or damaged, fetch it where that is allowed, and look again."""
    damaged = False
    try:
        found = look()
    except DataError:
        if not request.download:
            raise
        found, damaged = None, True
    if found is None and request.download:
        download(info.name, request.root, repair=damaged)
        found = look()
    if found is None:
        raise DataError(
            f"{info.title} is not in {request.root.resolve()}: looked for {info.layout}. Put it there, "
            "name the folder that has it (root=, on the command line --data, or the environment variable "
            "LIPCERT_DATA), or fetch it (download=True, on the command line --download)."
        )
    return found
