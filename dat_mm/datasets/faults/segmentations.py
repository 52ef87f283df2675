# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Faults of COCO's masks. pycocotools ends the process, or takes all memory, on some of them."""

import numpy as np

from .fault import brief, is_number

FARTHEST = 100_000  # pixels; pycocotools keeps every point that a polygon passes through
DIGITS = 7  # of five bits, in a number of a compressed run length


def segmentation_fault(segmentation, size) -> tuple[str, str] | None:
    """Finds the first fault of a mask as (kind, what), if there is one. `size` is the image's (width, height)."""
    if isinstance(segmentation, dict):
        what = _run_length_fault(segmentation, size)
        return ('run length', what) if what else None
    if not isinstance(segmentation, list) or not segmentation:
        return 'mask', f'segmentation is {brief(segmentation)}, neither polygons nor a run length'
    for polygon in segmentation:
        if not isinstance(polygon, list):
            return 'mask', f'a polygon is {brief(polygon)}, not a list of numbers'
        if len(polygon) < 6 or len(polygon) % 2:
            return 'polygon', f'a polygon has {len(polygon)} numbers, not an even count of at least 6'
        if not {*map(type, polygon)} <= {int, float} or not all(-FARTHEST <= value <= FARTHEST for value in polygon):
            return 'mask', f'a polygon has other values than numbers from -{FARTHEST} to {FARTHEST}: {brief(polygon)}'
    return None


def _run_length_fault(segmentation, size):
    counts, told = segmentation.get('counts'), segmentation.get('size')
    if not isinstance(told, list) or len(told) != 2 or not all(is_number(side) and side > 0 for side in told):
        return f'the size of a run length is {brief(told)}, not [height, width]'
    if size and (told[1], told[0]) != tuple(size):
        return f'a run length is of {brief(told[1])} x {brief(told[0])} pixels, and its image of {size[0]} x {size[1]}'
    if isinstance(counts, str):
        runs = decompress(counts)
        if runs is None:
            return f'the counts {brief(counts)} are no compressed run length'
    elif isinstance(counts, list) and all(is_number(run) and run == int(run) for run in counts):
        runs = counts
    else:
        return f'the counts are {brief(counts)}, neither a text nor a list of whole numbers'
    if any(run < 0 for run in runs):
        return f'a run is of {min(runs)} pixels, fewer than none'
    if sum(runs) != told[0] * told[1]:
        return f'the runs are of {sum(runs)} pixels, and the mask has {brief(told[0])} x {brief(told[1])}'
    return None


def decompress(text: str) -> list[int] | None:
    """Reads the numbers of a compressed run length, or None where the text is none.

    Each character holds five bits, lowest first, and whether the number goes on. From the fourth number on, the
    differences to the number two places before are stored.
    """
    codes = np.frombuffer(text.encode('utf-8', 'replace'), np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return None
    ends = np.flatnonzero(~codes & 32)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() >= DIGITS:
        return None
    digit = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    numbers = np.add.reduceat((codes & 31) << (5 * digit), starts)
    negative = (codes[ends] & 16) > 0
    numbers -= np.where(negative, np.int64(1) << (5 * (ends - starts + 1)), 0)
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers.tolist()
