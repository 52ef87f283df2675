# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Layers as few bytes: what page.js makes attention from, and how exact that is."""

import numpy as np

from ...ops.grid import query_axis
from ..layer import Layer

MOST_QUERIES = 4096  # kept of a layer: one of every 2x2, 3x3, ... pixels where a map has more
MOST_ROWS = 4_000_000  # numbers of attention kept of a layer whose bias is no table


def thin(size, most: int) -> tuple[int, np.ndarray]:
    """How far apart the queries that are kept are, and their numbers, row by row; at most about `most` of them."""
    H, W = size
    every = 1
    while -(-H // every) * -(-W // every) > max(most, 1) and every < max(H, W):
        every += 1
    rows, columns = (np.minimum(np.arange(0, n, every) + every // 2, n - 1) for n in size)
    return every, (rows[:, None] * W + columns).reshape(-1)


def kept_queries(layer: Layer) -> tuple[int, np.ndarray]:
    """How far apart the queries of a layer are that the page has, and their numbers."""
    rows_only = layer._bias.logits is not None
    return thin(layer.map_size, MOST_ROWS // (layer.heads * layer.keys) if rows_only else MOST_QUERIES)


def _balanced(q: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Queries and keys (M, n, D) with the same products, and each channel about as large in both."""
    ranges = [np.maximum(np.abs(x).max(axis=1, keepdims=True), 1e-12) for x in (q, k)]
    ratio = np.sqrt(ranges[0] / ranges[1])
    return q / ratio, k * ratio


def quantise(x: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (M, n, D) as integers of so many bits, and the step (M,) of each head."""
    top = 2 ** (bits - 1) - 1
    step = np.maximum(np.abs(x).max(axis=(1, 2)), 1e-12) / top
    kind = np.int8 if bits <= 8 else np.int16
    return np.rint(x / step[:, None, None]).astype(kind), step.astype(np.float32)


def pack(layer: Layer, bits: int) -> tuple[dict, dict[str, np.ndarray]]:
    """A layer as a dict of plain values and a dict of arrays; the order of the axes is what page.js reads."""
    table = layer._bias.table
    every, kept = kept_queries(layer)
    starts, steps = zip(*(query_axis(n, layer.convention) for n in layer.map_size), strict=True)
    plain = dict(
        name=layer.name,
        label=layer.label,
        heads=layer.heads,
        groups=layer.groups,
        map=layer.map_size,
        keyMap=layer.key_map_size,
        first=layer.map_grid.first,
        step=layer.map_grid.step,
        every=every,
        queryStart=starts,
        queryStep=steps,
        tableSize=None if table is None else list(table.shape[1:]),
    )
    arrays = dict(
        points=layer.points_in_input.astype(np.float32),
        reference=layer.reference_in_input.astype(np.float32),
        received=layer.received.astype(np.float32),
    )
    if table is not None:
        arrays['table'] = table.detach().float().cpu().numpy()
        arrays['positions'] = layer.points.astype(np.float32)
    if layer._bias.logits is not None:
        weights = np.concatenate([layer.attention(part) for part in np.array_split(kept, -(-len(kept) // 256))], axis=1)
        arrays['most'] = weights.max(axis=-1).astype(np.float32)
        # the square root leaves more steps to the many small numbers
        arrays['rows'] = np.rint(255 * np.sqrt(weights / arrays['most'][..., None])).astype(np.uint8)
    else:
        q, k = layer.q[:, kept].cpu().numpy() * layer.scale, layer.k.cpu().numpy()
        (arrays['q'], arrays['qStep']), (arrays['k'], arrays['kStep']) = (quantise(x, bits) for x in _balanced(q, k))
    return plain, arrays


def unpacked_attention(layer: Layer, arrays: dict, at: int) -> np.ndarray:
    """The attention (M, K) that page.js makes of the query that was kept in place `at`."""
    if 'rows' in arrays:
        weights = (arrays['rows'][:, at] / 255.0) ** 2 * arrays['most'][:, at, None]
        return weights / weights.sum(-1, keepdims=True)
    q, k = (arrays[x].astype(np.float64) * arrays[f'{x}Step'][:, None, None] for x in 'qk')
    logits = np.einsum('md,mkd->mk', q[:, at], k)
    _, kept = kept_queries(layer)
    logits = logits + layer.bias(int(kept[at]))
    logits = np.exp(logits - logits.max(-1, keepdims=True))
    return logits / logits.sum(-1, keepdims=True)


def largest_error(layer: Layer, arrays: dict, count: int = 16) -> float:
    """How far a head's attention to a key on the page is from the exact, at most, over some queries spread evenly."""
    _, kept = kept_queries(layer)
    some = np.unique(np.linspace(0, len(kept) - 1, count).round().astype(int))
    return max(
        float(np.abs(unpacked_attention(layer, arrays, int(at)) - layer.attention(int(kept[at]))).max()) for at in some
    )
