# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Attention for exported graphs, which other runtimes run at any map size: products, and no sampling of the table.

The position bias of deformable attention is a product of three matrices for each key (separable.py). Exported as the
reference has it, it samples the table for every pair of a query and a key.

Keys go in chunks, so that no tensor is as large as all logits. In a graph that is a loop, of as many steps as its map
needs. Logits are (keys, H W), so that the largest logit of a query and the sum of its weights are found along the first
axis: runtimes are fast at that.

Neighborhoods are small tiles of queries with a halo of keys around them.

B batch, G groups, M heads, m of them in a group, D head width, H x W the map, K keys, c of them in a chunk.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from . import grid, library, reference
from .dense import Hat
from .layout import crop
from .tracing import exporting, only_exporting, while_loop

LOGITS = 6 << 20  # at most so many at once, of all heads and images, unless one key has more
TILE = 4  # queries of a tile along an axis
UNSEEN = -1e4  # the logit of a key that a query does not see; float16 has it too


def axis_hats(points: Tensor, queries: Tensor, cells: Tensor) -> Tensor:
    """The weights of the cells along an axis of a table, for points (..., c).

    Queries are (n, 1) and the numbers of the cells (cells,), for weights (..., c, n, cells). They may be the other way
    round.
    """
    cell = (cells.numel() - 1) / 4
    distance = (queries + 2) * cell - cells - (points * cell)[..., None, None]
    return F.relu(1 - distance.abs()) if exporting() else Hat.apply(distance)


def deformable_attention(q, k, v, points, table, *, bias, convention, scale, dropout):
    B, M, H, W, D = q.shape
    G, K = points.shape[1:3]
    dtype = grid.coordinate_dtype(q, points)
    queries = (q * scale).flatten(2, 3).transpose(2, 3).contiguous().unflatten(1, (G, -1))  # (B, G, m, D, H W)
    k, v = k.unflatten(1, (G, -1)), F.pad(v, (0, 1), value=1.0).unflatten(1, (G, -1))
    points = points.to(dtype)
    if table is not None:
        table = table.to(dtype).unflatten(0, (G, -1))
        y, x = (grid.query_positions(n, convention, dtype, q.device) for n in (H, W))
        cells_y, cells_x = (torch.arange(n, dtype=dtype, device=q.device) for n in table.shape[2:])
        y, cells_x = y.unsqueeze(-1), cells_x.unsqueeze(-1)

    def logits_of(k: Tensor, points: Tensor) -> Tensor:
        logits = (k @ queries).to(dtype)  # (B, G, m, c, H W)
        if table is not None:
            with grid.full_precision(q):
                along_y = axis_hats(points[..., 0], y, cells_y)  # (B, G, c, H, cells)
                along_x = axis_hats(points[..., 1], x, cells_x)  # (B, G, c, cells, W)
                rows = along_y.flatten(2, 3).unsqueeze(2) @ table  # (B, G, m, c H, cells)
                from_table = rows.unflatten(3, (-1, H)) @ along_x.unsqueeze(2)  # (B, G, m, c, H, W)
            logits = logits + from_table.flatten(4)
        return logits

    def weigh(logits: Tensor, largest: Tensor, v: Tensor) -> Tensor:
        weights = (logits - largest).exp()
        return (v.transpose(-2, -1) @ weights.to(v.dtype)).to(dtype)

    def attend(largest: Tensor, total: Tensor, k: Tensor, v: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Adds the keys of a chunk to the largest logits (B, G, m, 1, H W) and to the sums of values and of weights."""
        logits = logits_of(k, points)
        new = torch.maximum(largest, logits.amax(-2, keepdim=True))
        return new, total * (largest - new).exp() + weigh(logits, new, v)

    largest = queries.new_full((*queries.shape[:3], 1, H * W), -math.inf, dtype=dtype)
    total = queries.new_zeros((*queries.shape[:3], D + 1, H * W), dtype=dtype)
    chunks = 1 + B * M * H * W * K // LOGITS
    length = (K + chunks - 1) // chunks
    if isinstance(chunks, int) and chunks == 1:
        logits = logits_of(k, points)
        total = weigh(logits, logits.amax(-2, keepdim=True), v)
    elif not exporting():
        for first in range(0, K, length):
            part = slice(first, first + length)
            largest, total = attend(largest, total, k[..., part, :], v[..., part, :], points[..., part, :])
    else:
        # The last chunk is filled up with the last key, whose value there is zero.
        def step(first: Tensor, largest: Tensor, total: Tensor):
            at = first + torch.arange(length, device=q.device)
            is_key = (at < K).to(v.dtype).unsqueeze(-1)
            at = at.clamp(max=K - 1)
            chunk = k.index_select(3, at), v.index_select(3, at) * is_key, points.index_select(2, at)
            return first + length, *attend(largest, total, *chunk)

        first = torch.zeros(1, dtype=torch.long, device=q.device)
        _, _, total = while_loop(lambda first, *_: (first < K).squeeze(0), step, (first, largest, total))
    out = (total[..., :-1, :] / total[..., -1:, :]).to(v.dtype)
    return out.flatten(1, 2).transpose(2, 3).unflatten(2, (H, W))


def why_not(bias, dropout, **call) -> str | None:
    return library.why_not_table(bias, dropout)


def is_faster(**call) -> bool:
    """Whether the graph is to be run by something else. Here, others are faster."""
    return only_exporting()


def tile_axis(n: int, kernel_size: int, device) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels of the tiles along an axis, and of their halos, and which pixel of the halo each query sees.

    They are (tiles, queries), (tiles, keys) and (tiles, queries, keys), with the displacements for those that are seen
    and kernel_size for the others.
    """
    halo = TILE + kernel_size - 1
    first = torch.arange((n + TILE - 1) // TILE, device=device) * TILE
    queries = (first[:, None] + torch.arange(TILE, device=device)).clamp(max=n - 1)
    # Where the neighborhoods of the last queries are moved inside the map, so is the halo.
    start = (first - kernel_size // 2).clamp(max=n - halo).clamp(min=0)
    keys = start[:, None] + torch.arange(halo, device=device)
    seen_from = (queries - kernel_size // 2).clamp(min=0).clamp(max=n - kernel_size)
    beyond = keys[:, None] - seen_from[:, :, None]
    seen = (beyond >= 0) & (beyond < kernel_size)
    displacement = torch.where(seen, keys[:, None] - queries[:, :, None], kernel_size)
    return queries, keys.clamp(max=n - 1), displacement


def neighborhood_attention(q, k, v, table, *, kernel_size, scale, dropout):
    H, W = q.shape[2:4]
    (rows, row_keys, down), (columns, column_keys, across) = (tile_axis(n, kernel_size, q.device) for n in (H, W))
    dtype = grid.coordinate_dtype(q)

    def tiles(x: Tensor, y: Tensor, x_: Tensor) -> Tensor:
        """A map as (B, M, tiles along y, along x, pixels, D)."""
        pixels = (y * W)[:, None, :, None] + x_[None, :, None, :]
        return x.flatten(2, 3).index_select(2, pixels.flatten()).unflatten(2, (*pixels.shape[:2], -1))

    side = torch.arange(1 - kernel_size, kernel_size, device=q.device)
    one_hot_y, one_hot_x = (
        (t.unsqueeze(-1) == side).to(dtype).flatten(0, 2) for t in (down, across)
    )  # (tiles queries keys, side), without a one where the key is not seen
    seen = one_hot_y.sum(1, keepdim=True) @ one_hot_x.sum(1).unsqueeze(0)
    bias = ((1 - seen) * UNSEEN).unsqueeze(0)
    if table is not None:
        with grid.full_precision(q):
            # heads as columns: OpenVINO refuses a constant of three axes beside a factor of two
            along_y = one_hot_y @ table.to(dtype).transpose(0, 1).flatten(1)
            from_table = along_y.unflatten(1, table.shape[:2]) @ one_hot_x.transpose(0, 1)
            bias = from_table.transpose(0, 1) + bias
    bias = bias.unflatten(2, across.shape).unflatten(1, down.shape).permute(0, 1, 4, 2, 5, 3, 6)
    bias = bias.flatten(5, 6).flatten(3, 4)  # (M, tiles, tiles, queries, keys)

    logits = tiles(q * scale, rows, columns) @ tiles(k, row_keys, column_keys).transpose(-2, -1)
    out = reference.average_values(logits.to(dtype) + bias, tiles(v, row_keys, column_keys))
    out = out.unflatten(4, (TILE, TILE)).transpose(3, 4).flatten(4, 5).flatten(2, 3)
    return crop(out, H, W, 2)
