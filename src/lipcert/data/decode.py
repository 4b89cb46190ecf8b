"""Decoding image files into one array of bytes."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import PIL
import torch
from PIL import Image, ImageFile, PpmImagePlugin, TiffImagePlugin, features

from lipcert.errors import DataError

__all__ = ["decode_images", "decoder_version", "is_grey"]

# What the suffixes in files.py stand for. Pillow knows more formats, some of which start other programs.
_FORMATS = ("JPEG", "PNG", "BMP", "PPM", "WEBP", "TIFF")
_MOST_PIXELS = 1 << 25  # of one image: 32 megapixels
_CHUNK = 256


def decoder_version() -> str:
    """Name the libraries that decide which bytes a JPEG file becomes."""
    return f"pillow {PIL.__version__}, jpeg {features.version('jpg')}, turbo {features.version('libjpeg_turbo')}"


def is_grey(path: Path) -> bool:
    """Whether an image file has one channel (Pillow's mode ``L`` or ``1``); only its header is read."""
    with _opened(path) as image:
        return image.mode in ("L", "1")


def decode_images(paths: Sequence[Path], *, grey: bool, size: tuple[int, int] | None = None) -> torch.Tensor:
    """Decode image files into uint8 of shape (N, 1, H, W) if ``grey``, else (N, 3, H, W), in RGB.

    Transparency is dropped, an orientation in the file's EXIF data is not applied, and of several frames the
    first counts. With ``size`` = (H, W) every image is resized to it (bilinear, antialiased).

    Raises:
        DataError: a file is broken, too large, or has more than 8 bits a channel; or the images are of
            several sizes and no ``size`` is given; or they do not fit in memory.
    """
    first = _decode(paths[0], grey, size)
    shape = (len(paths), *first.shape)
    memory = _memory()
    if memory is not None and math.prod(shape) > memory:
        raise DataError(
            f"{paths[0].parent}: {len(paths)} images of {first.shape[2]}x{first.shape[1]} take "
            f"{math.prod(shape) / 2**30:.1f} GiB, more than this machine's {memory / 2**30:.1f} GiB; "
            "use smaller images (size=)"
        )
    out = np.empty(shape, dtype=np.uint8)

    def work(start: int) -> None:
        for index in range(start, min(start + _CHUNK, len(paths))):
            image = _decode(paths[index], grey, size)
            if image.shape != first.shape:
                raise DataError(
                    f"{paths[0]} is {first.shape[2]}x{first.shape[1]} (width x height) but {paths[index]} is "
                    f"{image.shape[2]}x{image.shape[1]}: all images must have one size; resize the files, "
                    "or use lipcert.data.image_folder(..., size=...)"
                )
            out[index] = image

    # Pillow decodes without holding the interpreter's lock.
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        futures = [pool.submit(work, start) for start in range(0, len(paths), _CHUNK)]
        try:
            for future in futures:
                future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return torch.from_numpy(out)


def _decode(path: Path, grey: bool, size: tuple[int, int] | None) -> npt.NDArray[np.uint8]:
    with _opened(path) as image:
        try:
            converted = image.convert("L" if grey else "RGB")
        except Exception as error:  # Pillow's decoders raise many kinds for a broken file
            raise DataError(_broken(path, error)) from error
    if size is not None and converted.size != (size[1], size[0]):
        converted = converted.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    array: npt.NDArray[np.uint8] = np.asarray(converted, dtype=np.uint8)
    return array[None] if grey else array.transpose(2, 0, 1)


def _opened(path: Path) -> Image.Image:
    try:
        image = Image.open(path, formats=_FORMATS)
        bits = _bits(path, image)
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: refused, more than {_MOST_PIXELS} pixels") from error
    except Exception as error:
        raise DataError(_broken(path, error)) from error
    problem = ""
    if image.width * image.height > _MOST_PIXELS:
        problem = f"refused, {image.width}x{image.height} is more than {_MOST_PIXELS} pixels"
    elif bits > 8:
        problem = f"has more than 8 bits a channel ({bits}); convert it to 8 bits"
    if problem:
        image.close()
        raise DataError(f"{path}: {problem}")
    return image


def _bits(path: Path, image: ImageFile.ImageFile) -> int:
    """How many bits a channel has in the file: of 16 in a coloured image, Pillow drops 8 without a word."""
    if image.mode == "F":
        return 32
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(max(image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (1,))))
    if image.format == "PNG":
        with path.open("rb") as file:
            return file.read(25)[24]  # in IHDR, the first chunk, after width and height
    if isinstance(image, PpmImagePlugin.PpmImageFile) and image.mode != "1":  # bitmaps have no largest value
        with path.open("rb") as file:
            header = re.sub(rb"#[^\r\n]*[\r\n]", b"", file.read(image.tile[0][2]))  # up to the pixels
        return int(header.split()[-1]).bit_length()
    return 8


def _broken(path: Path, error: Exception) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else "truncated, altered or not an image"
    return f"{path}: cannot be decoded ({reason}); replace or remove it"


def _memory() -> int | None:
    """How many bytes of memory the machine has, where the system says so."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return None
