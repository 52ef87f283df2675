# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What a query can see in four kinds of attention, on the same map."""

from dataclasses import dataclass

import numpy as np

from .layer import Layer


@dataclass(frozen=True)
class Field:
    """What one query sees: places (n, 2), as (x, y) in pixels of the model's input, and a weight for each.

    Where nothing is learned in this model, weights are the same for all places.
    """

    title: str
    what: str
    places: np.ndarray
    weights: np.ndarray


def _square(layer: Layer, rows, columns) -> np.ndarray:
    """The places of all pixels of the map in some rows and columns."""
    return layer.map_grid.centres()[np.ix_(rows, columns)].reshape(-1, 2)


def full_attention(layer: Layer, query: int) -> Field:
    """Every pixel of the map, as in ViT."""
    places = layer.map_grid.centres().reshape(-1, 2)
    return Field('ViT', 'every pixel of the map', places, np.full(len(places), 1 / len(places)))


def window(n: int, at: int, size: int = 7) -> np.ndarray:
    """The pixels along an axis of n that are in the same window as pixel `at`."""
    first = at // size * size
    return np.arange(first, min(first + size, n))


def window_attention(layer: Layer, query: int, size: int = 7) -> Field:
    """The window that the query is in, as in Swin."""
    (H, W), (row, column) = layer.map_size, divmod(query, layer.map_size[1])
    places = _square(layer, window(H, row, size), window(W, column, size))
    return Field('Swin', f'its window of {size}x{size}', places, np.full(len(places), 1 / len(places)))


def deformable_convolution(layer: Layer, query: int) -> Field:
    """The nine places of a 3x3 kernel around the query, which DCN would move for each query on its own."""
    row, column = divmod(query, layer.map_size[1])
    rows, columns = np.mgrid[row - 1 : row + 2, column - 1 : column + 2]
    places = layer.map_grid.to_input(np.stack([columns, rows], -1)).reshape(-1, 2)
    return Field('DCN', 'nine places of its own, before they are moved', places, np.full(9, 1 / 9))


def deformable_attention(layer: Layer, query: int) -> Field:
    """The points that all queries share, with the attention of this query as the mean over the heads of a group."""
    weights = layer.by_group(layer.attention(query)) / layer.groups
    return Field(
        'DAT', 'points that all queries share', layer.points_in_input.reshape(-1, 2), weights.astype(float).reshape(-1)
    )


FIELDS = (full_attention, window_attention, deformable_convolution, deformable_attention)


def receptive_fields(layer: Layer, query: int) -> list[Field]:
    """What a query sees in ViT, Swin, DCN and DAT. The first three are by their rules, the last by what was learned."""
    return [field(layer, query) for field in FIELDS]
