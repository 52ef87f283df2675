# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Numbers about a recording: how far points move, and how alike the attention of the queries is."""

import numpy as np

from .layer import Layer


def offset_statistics(layer: Layer) -> list[dict]:
    """How far the points of each group are from where they would be without offsets, in pixels of the model's input.

    `cells` is the mean in distances between neighboring keys. `at_border` is the share of points at the border of the
    map or beyond, where offsets without a limit are cut off.
    """
    offsets, points = layer.offsets_in_input, layer.points
    height, width = layer.key_map_size
    spacing = np.array(
        [n * s / k for n, s, k in zip(layer.map_size[::-1], layer.map_grid.step, (width, height), strict=True)]
    )
    found = []
    for group in range(len(offsets)):
        lengths = np.hypot(*offsets[group].T)
        found.append(
            dict(
                group=group,
                mean=float(lengths.mean()),
                median=float(np.median(lengths)),
                p95=float(np.quantile(lengths, 0.95)),
                max=float(lengths.max()),
                cells=float(np.hypot(*(offsets[group] / spacing).T).mean()),
                at_border=float((np.abs(points[group]) > 1 - 1e-6).any(-1).mean()),
            )
        )
    return found


def similarity_by_depth(layers: list[Layer]) -> list[tuple[str, float]]:
    """How alike the attention of two queries is in each layer, as a mean over its heads."""
    return [(layer.name, float(layer.similarity.mean())) for layer in layers]


def summary(layer: Layer) -> dict[str, float]:
    """A layer in three numbers: how far its points move, as a mean and at most, and how alike its queries are."""
    stats = offset_statistics(layer)
    return dict(
        offset=float(np.mean([entry['mean'] for entry in stats])),
        offset_max=max(entry['max'] for entry in stats),
        similarity=float(layer.similarity.mean()),
    )
