# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Where things are: in a map, in the input of the model, in the picture that the input was made from.

Positions in pixels are (x, y), and 0 is the centre of the first pixel. Positions in [-1, 1] are (y, x), as in ops.
"""

from dataclasses import dataclass

import numpy as np
from torch import nn

from ..errors import UserError


@dataclass(frozen=True)
class MapGrid:
    """Where the pixels of a map are in the input of the model.

    `first` is the place of the first pixel and `step` the distance from one pixel to the next, in pixels of the input.
    """

    height: int
    width: int
    first: tuple[float, float] = (0.0, 0.0)
    step: tuple[float, float] = (1.0, 1.0)

    def pixels_at(self, points: np.ndarray) -> np.ndarray:
        """The pixels of the map, (..., 2) as (x, y) and with fractions, that points (..., 2) in [-1, 1] sample."""
        return (np.asarray(points)[..., ::-1] + 1) / 2 * np.array([self.width - 1, self.height - 1])

    def to_input(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels of the map, (..., 2) as (x, y), in pixels of the model's input."""
        return np.asarray(pixels) * np.array(self.step) + np.array(self.first)

    def points_to_input(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 2) in [-1, 1], as (y, x), in pixels of the model's input, as (x, y)."""
        return self.to_input(self.pixels_at(points))

    def centres(self) -> np.ndarray:
        """The places of all pixels of the map in the model's input, (H, W, 2)."""
        y, x = np.mgrid[: self.height, : self.width]
        return self.to_input(np.stack([x, y], axis=-1))

    def nearest(self, place) -> int:
        """The number of the pixel, row by row, that is nearest to a place (x, y) of the model's input."""
        x, y = (np.asarray(place) - np.array(self.first)) / np.array(self.step)
        column = int(np.clip(np.rint(x), 0, self.width - 1))
        row = int(np.clip(np.rint(y), 0, self.height - 1))
        return row * self.width + column


def strides(backbone: nn.Module) -> list[tuple[float, float]]:
    """Where the pixels of each stage's map are in the input: (the place of the first, the distance to the next).

    A pixel is where the middle of its receptive field is. Patches of 4 have theirs between two pixels of the input,
    and 3x3 convolutions of stride 2 have it on a pixel.
    """
    found, first, step = [], 0.0, 1.0
    for module in (backbone.stem, *backbone.downsamples):
        for conv in module.modules():
            if isinstance(conv, nn.Conv2d):
                first += step * ((conv.kernel_size[0] - 1) / 2 - conv.padding[0])
                step *= conv.stride[0]
        found.append((first, step))
    return found


@dataclass(frozen=True)
class Placement:
    """How a picture became the input of a model: resized, then cropped, then flipped, then padded below and right.

    Args:
        size: (width, height) of the picture.
        scale: pixels of the resized picture per pixel of the picture, along x and y.
        corner: (x, y) of the first pixel that was kept of the resized picture.
        kept: (width, height) of what was kept of it.
        flip: '', 'horizontal', 'vertical' or 'diagonal'.
    """

    size: tuple[int, int]
    scale: tuple[float, float] = (1.0, 1.0)
    corner: tuple[float, float] = (0.0, 0.0)
    kept: tuple[int, int] | None = None
    flip: str = ''

    def __post_init__(self):
        if self.flip not in ('', 'horizontal', 'vertical', 'diagonal'):
            raise ValueError(f'flip={self.flip!r} is not one of horizontal, vertical, diagonal')
        if self.kept is None:
            kept = tuple(round(n * s) for n, s in zip(self.size, self.scale, strict=True))
            object.__setattr__(self, 'kept', kept)

    @classmethod
    def from_meta(cls, meta: dict, size=None) -> 'Placement':
        """The placement that a data sample of a toolbox tells in its metainfo.

        A crop that was not at the centre cannot be read from there. The pipelines that test models have none.
        """
        height, width = meta['ori_shape'][:2] if size is None else size[::-1]
        kept_height, kept_width = meta['img_shape'][:2]
        scale = tuple(float(s) for s in np.ravel(meta.get('scale_factor', (1.0, 1.0)))[:2])
        scale = scale if len(scale) == 2 else scale * 2
        resized = round(width * scale[0]), round(height * scale[1])
        # a crop keeps less than there was: half of the rest was cut off on the left and above
        corner = tuple(
            float(max(0, round((n - k) / 2))) for n, k in zip(resized, (kept_width, kept_height), strict=True)
        )
        flip = meta.get('flip_direction') or 'horizontal' if meta.get('flip') else ''
        return cls((width, height), scale, corner, (kept_width, kept_height), flip)

    @classmethod
    def of(cls, size, input_size) -> 'Placement':
        """The placement of a picture (width, height) that fills an input (height, width)."""
        return cls(tuple(size), tuple(n / m for n, m in zip(input_size[::-1], size, strict=True)))

    def to_input(self, places: np.ndarray) -> np.ndarray:
        """Places (..., 2) of the picture, as (x, y), in pixels of the model's input."""
        x = (np.asarray(places, float) + 0.5) * np.array(self.scale) - 0.5 - np.array(self.corner)
        return self._flipped(x)

    def to_picture(self, places: np.ndarray) -> np.ndarray:
        """Places (..., 2) of the model's input, as (x, y), in pixels of the picture."""
        x = self._flipped(np.asarray(places, float))
        return (x + np.array(self.corner) + 0.5) / np.array(self.scale) - 0.5

    def _flipped(self, places):
        width, height = self.kept
        across, down = self.flip in ('horizontal', 'diagonal'), self.flip in ('vertical', 'diagonal')
        signs = np.array([-1 if across else 1, -1 if down else 1])
        return places * signs + np.array([width - 1 if across else 0, height - 1 if down else 0])

    def check_query(self, query) -> None:
        """Raises unless a query (x, y) is inside the part of the picture that the model saw."""
        x, y = query
        width, height = self.size
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(f'query {x:g},{y:g} is outside the picture: X is 0 to {width - 1}, Y is 0 to {height - 1}')
        inside = self.to_input((x, y))
        if (inside < -0.5).any() or (inside > np.array(self.kept) - 0.5).any():
            ends = self.to_picture(np.array([(0.0, 0.0), np.array(self.kept) - 1.0]))
            (left, top), (right, bottom) = np.ceil(ends.min(axis=0)), np.floor(ends.max(axis=0))
            raise UserError(
                f'query {x:g},{y:g} is outside what the model saw of the picture: '
                f'X is {left:.0f} to {right:.0f}, Y is {top:.0f} to {bottom:.0f}'
            )
