# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Attention for exported graphs, which other runtimes run at any map size: products, and no sampling or gathering.

The position bias of deformable attention is a product of three matrices for each key (separable.py). Exported as the
reference has it, it samples the table for every pair of a query and a key. Heads go one after the other, and logits are
(K, H W), so that the largest logit of a query and the sum of its weights are found along the first axis: runtimes are
fast at that.

Neighborhoods are small tiles of queries with a halo of keys around them.

B batch, G groups, M heads, D head width, H x W the map, K keys.
"""

import torch
from torch import Tensor

from . import grid, library, reference
from .dense import Hat
from .separable import hat
from .tracing import exporting, only_exporting

TILE = 4  # queries of a tile along an axis
UNSEEN = -1e4  # the logit of a key that a query does not see; float16 has it too


def axis_hats(points: Tensor, queries: Tensor, cells: int) -> Tensor:
    """The weights (..., K, n, cells) of the cells along an axis of a table, for queries (n,) and points (..., K)."""
    place = ((queries - points.unsqueeze(-1)) / 2 + 1) * ((cells - 1) / 2)
    distance = place.unsqueeze(-1) - torch.arange(cells, dtype=place.dtype, device=place.device)
    return hat(distance) if exporting() else Hat.apply(distance)


def deformable_attention(q, k, v, points, table, *, bias, convention, scale, dropout):
    B, M, H, W, _ = q.shape
    G = points.shape[1]
    hats = None
    if table is not None:
        dtype = grid.coordinate_dtype(table, points)
        y, x = (grid.query_positions(n, convention, dtype, points.device) for n in (H, W))
        points, table = points.to(dtype), table.to(dtype)
        with grid.full_precision(q):
            hats = [
                (axis_hats(points[:, g, :, 0], y, table.shape[1]), axis_hats(points[:, g, :, 1], x, table.shape[2]))
                for g in range(G)
            ]
    out = []
    for head in range(M):
        logits = k[:, head] @ (q[:, head] * scale).flatten(1, 2).transpose(1, 2)  # (B, K, H W)
        if hats is not None:
            with grid.full_precision(q):
                along_y, along_x = hats[head // (M // G)]
                from_table = (along_y @ table[head]) @ along_x.transpose(-2, -1)  # (B, K, H, W)
            logits = logits.to(from_table.dtype) + from_table.flatten(2)
        weights = (logits - logits.amax(1, keepdim=True)).exp()
        values = v[:, head].transpose(1, 2) @ weights.to(v.dtype)  # (B, D, H W)
        out.append(values / weights.sum(1, keepdim=True).to(v.dtype))
    return torch.stack(out, 1).transpose(2, 3).unflatten(2, (H, W))


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
        x = x.index_select(2, y.flatten()).index_select(3, x_.flatten())
        x = x.unflatten(2, y.shape).unflatten(4, x_.shape)
        return x.transpose(3, 4).flatten(4, 5)

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
    return out.index_select(2, torch.arange(H, device=q.device)).index_select(3, torch.arange(W, device=q.device))
