# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""How far the outputs of a runtime are from those of PyTorch."""

import numpy as np

from .boxes import NONE


def _apart(expected, found) -> float:
    """The largest difference, as a share of the largest expected number."""
    expected, found = (np.asarray(x, np.float64) for x in (expected, found))
    if expected.shape != found.shape:
        return float('inf')
    return float(np.abs(expected - found).max(initial=0) / max(np.abs(expected).max(initial=0), 1e-12))


def _pairs(expected, found, image: int) -> list[tuple[int, int]]:
    """Which row of one is which of the other: of the same label, the nearest in box and score that is still free."""
    free = [n for n in range(found['scores'].shape[1]) if found['scores'][image, n] > NONE]
    pairs = []
    for row in range(expected['scores'].shape[1]):
        if expected['scores'][image, row] <= NONE:
            continue
        same = [n for n in free if found['labels'][image, n] == expected['labels'][image, row]]
        if not same:
            return []
        boxes = np.abs(found['boxes'][image, same] - expected['boxes'][image, row]).max(-1)
        scores = np.abs(found['scores'][image, same] - expected['scores'][image, row])
        nearest = same[int(np.argmin(boxes + scores))]
        free.remove(nearest)
        pairs.append((row, nearest))
    return [] if free else pairs


def differences(expected: dict, found: dict) -> dict[str, float]:
    """The difference of each output: for numbers a share of the largest, for labels and masks the share that differs.

    Detections of nearly the same score may change places: each is compared with the one that it is. Where another
    number of them was found, the difference is infinite.
    """
    if 'boxes' not in expected:
        return {
            name: float((value != found[name]).mean()) if name == 'labels' else _apart(value, found[name])
            for name, value in expected.items()
        }
    result = dict.fromkeys(expected, 0.0)
    for image in range(len(expected['scores'])):
        pairs = _pairs(expected, found, image)
        count = int((expected['scores'][image] > NONE).sum())
        if len(pairs) != count or count != int((found['scores'][image] > NONE).sum()):
            return dict.fromkeys(expected, float('inf'))
        if not pairs:
            continue
        rows, places = map(list, zip(*pairs, strict=True))
        for name, value in expected.items():
            a, b = value[image, rows], found[name][image, places]
            apart = float((a != b).mean()) if name in ('labels', 'masks') else _apart(a, b)
            result[name] = max(result[name], apart)
    return result
