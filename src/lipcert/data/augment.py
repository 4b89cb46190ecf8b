"""Random flips, shifts and rotations of whole batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from lipcert.errors import DataError

from .dataset import as_float

__all__ = ["Augment"]


@dataclass(frozen=True)
class Augment:
    """A random change of each image of a batch: mirrored, turned, moved; what comes in from outside is black.

    Attributes:
        flip: mirror left and right with probability one half.
        shift: move by up to this fraction of the side, both ways along both axes, uniformly; in [0, 1).
            Without rotation the move is a whole number of pixels from ``-k`` to ``k`` with ``k = round(shift
            * side)`` (so 0.125 of 32 pixels is 4), and no pixel value changes; with rotation it is
            continuous.
        rotate: turn about the centre by up to this many degrees, both ways, uniformly; in [0, 180]. Bilinear.

    Raises:
        DataError: ``shift`` or ``rotate`` is out of range; when called, ``shift`` is under half a pixel.

    >>> images = torch.tensor([[[[0, 255], [51, 102]]]], dtype=torch.uint8)
    >>> Augment(flip=True)(images, torch.Generator().manual_seed(0)).shape
    torch.Size([1, 1, 2, 2])
    """

    flip: bool = False
    shift: float = 0.0
    rotate: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.shift < 1:  # NaN is refused too
            raise DataError(f"shift is a fraction of the side, at least 0 and less than 1; found {self.shift}")
        if not 0 <= self.rotate <= 180:
            raise DataError(f"rotate is an angle in degrees from 0 to 180; found {self.rotate}")

    def __call__(
        self, images: torch.Tensor, generator: torch.Generator, among: tuple[int, int] | None = None
    ) -> torch.Tensor:
        """Return a changed copy of ``images`` (N, C, H, W).

        Args:
            images: bytes, or float32 or float64 in [0, 1], on any device.
            generator: where all randomness comes from, four numbers for each image whatever is switched on;
                with one on the CPU, every device gets the same flips, shifts and angles.
            among: ``(first, count)`` if these are only some of ``count`` images, from the ``first`` on: they are
                changed as they would be among all.

        Returns:
            Floats in [0, 1], float32 for bytes, else the dtype that came in; channels-last if the input was.

        Raises:
            DataError: ``images`` has another dtype or shape.
        """
        if images.dim() != 4 or images.dtype not in (torch.uint8, torch.float32, torch.float64):
            raise DataError(
                "Augment needs images of shape (N, C, H, W) in uint8, float32 or float64; "
                f"found {images.dtype} of shape {tuple(images.shape)}"
            )
        first, count = (0, len(images)) if among is None else among
        draws = torch.rand(4, count, generator=generator, device=generator.device)
        draws = draws[:, first : first + len(images)].to(images.device)
        if self.rotate:
            return self._turned(as_float(images) if images.dtype == torch.uint8 else images, draws)
        if self.shift or self.flip:
            images = self._moved(images, draws)
        return as_float(images) if images.dtype == torch.uint8 else images.clone()

    def _moved(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Flip and move by whole pixels: one gather of pixels, in the dtype that came in."""
        count, channels, height, width = images.shape
        rows = torch.arange(height, device=images.device) - self._pixels(draws[0], height)[:, None]
        columns = torch.arange(width, device=images.device) - self._pixels(draws[1], width)[:, None]
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
        if self.flip:
            columns = torch.where(draws[2, :, None] < 0.5, width - 1 - columns, columns)
        first = torch.arange(count, device=images.device)[:, None, None] * (height * width)
        black = count * height * width  # the pixel after the last, added below
        where = torch.where(inside, first + rows[:, :, None] * width + columns[:, None, :], black)
        pixels = F.pad(images.permute(0, 2, 3, 1).reshape(black, channels), (0, 0, 0, 1))
        moved = pixels.index_select(0, where.view(-1)).view(count, height, width, channels).permute(0, 3, 1, 2)
        return moved if _is_channels_last(images) else moved.contiguous()

    def _pixels(self, draw: torch.Tensor, side: int) -> torch.Tensor:
        most = round(self.shift * side)
        if most == 0 and self.shift:
            raise DataError(
                f"shift={self.shift} is less than half a pixel of a side of {side} pixels, so nothing "
                f"would move: use 0, or at least {1 / side:.3g}"
            )
        # The product stays under 2 * most + 1: a draw is at most 1 - 2**-24, and rounding cannot close that
        # gap.
        return (draw * (2 * most + 1)).floor().long() - most

    def _turned(self, images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """Flip, turn and move in one bilinear sampling: each target pixel is taken from its source point."""
        height, width = images.shape[2:]
        shift_y, shift_x, flip, turn = draws.to(images.dtype)
        angle = (2 * turn - 1) * math.radians(self.rotate)
        cosine, sine = angle.cos(), angle.sin()
        sign = torch.where(flip < 0.5, -1.0, 1.0) if self.flip else torch.ones_like(flip)
        # Coordinates run from -1 to 1 along both sides, whatever their lengths: a turn has to allow for that.
        theta = torch.stack(
            [
                torch.stack(
                    [sign * cosine, -sign * sine * (height / width), 2 * self.shift * (2 * shift_x - 1)],
                    dim=1,
                ),
                torch.stack([sine * (width / height), cosine, 2 * self.shift * (2 * shift_y - 1)], dim=1),
            ],
            dim=1,
        )
        grid = F.affine_grid(theta.to(images.dtype), list(images.shape), align_corners=False)
        turned = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False).clamp_(0, 1)
        return (
            turned.contiguous(memory_format=torch.channels_last) if _is_channels_last(images) else turned.contiguous()
        )


def _is_channels_last(images: torch.Tensor) -> bool:
    return images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
