# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Faults of segmentation maps, images whose values are labels."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from .fault import Fault, read_bytes, shown
from .images import open_with_pillow, read_image


@dataclass(frozen=True)
class Labels:
    """What the values of a map mean: `count` classes from `first` on, and values that are ignored."""

    count: int
    first: int = 0
    ignored: tuple[int, ...] = (255,)

    def unknown(self, values) -> list[int]:
        """Lists the values that are neither of a class nor ignored."""
        known = {*range(self.first, self.first + self.count), *self.ignored}
        return [int(value) for value in values if int(value) not in known]

    def __str__(self):
        ignored = ' and '.join(map(str, self.ignored))
        return f'classes are {self.first} to {self.first + self.count - 1}, ignored {ignored}'


def map_faults(image_path, map_path, labels: Labels | None = None) -> Iterator[Fault]:
    """Yields what is wrong with an image and with its map. Without `labels` any value may stand in the map."""
    image, fault = read_image(image_path)
    if fault:
        yield fault
    content, fault = read_bytes(map_path)
    if fault:
        whose = f'{fault.what}; it is the map of {shown(image_path)}'
        yield Fault(fault.file, fault.kind.replace('file', 'map'), whose)
        return
    values, reason = open_with_pillow(content)
    if reason:
        yield Fault(str(map_path), 'corrupt map', f'is corrupt or cut off ({reason})')
    if values is not None:
        yield from _value_faults(np.squeeze(values), image, str(map_path), labels)


def _value_faults(values, image, path, labels):
    if values.ndim != 2:
        yield Fault(path, 'map of channels', f'has {values.shape[-1]} channels, and a map of labels has one')
        return
    if image is not None and values.shape != image.shape[:2]:
        (height, width), (image_height, image_width) = values.shape, image.shape[:2]
        what = f'is {width} x {height} pixels, and its image {image_width} x {image_height}'
        yield Fault(path, 'map size', what)
    unknown = labels.unknown(np.unique(values)) if labels else []
    if unknown:
        numbers = ', '.join(map(str, unknown[:5])) + (', ...' if len(unknown) > 5 else '')
        pixels = int(np.isin(values, unknown).sum())
        yield Fault(
            path, 'label beyond the classes', f'has labels of no class: {numbers}, in {pixels} pixels ({labels})'
        )
