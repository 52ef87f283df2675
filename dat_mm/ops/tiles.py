# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Neighborhood attention by tiles: a tile of queries attends, masked, to all keys of the tile and a halo around it.

For a 7x7 neighborhood that is four times the arithmetic of the definition. But it is in dense products, and makes three
copies of k and v instead of 49. A short axis is one tile.

B batch, M heads, D head width, H x W the map, y and x tiles along its axes.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import grid, reference
from .tracing import exporting, needs_gradient

TILE = 8  # queries of a tile along an axis, about
BUDGET = 4 << 20  # bytes of k and v in halos at a time, where nothing is kept for a backward


class Axis(NamedTuple):
    """The tiles along an axis. All are alike but the first and the last, which see the border."""

    tiles: int
    queries: int  # of a tile
    reach: int  # of the halo beyond the tile
    before: int  # the first tile begins so many queries before the map
    after: int  # the last tile ends so many queries after the map

    @property
    def halo(self):
        return self.queries + 2 * self.reach

    @property
    def runs(self):
        """The runs of tiles with the same mask, each as (first tile, number of tiles)."""
        inner = [(1, self.tiles - 2)] if self.tiles > 2 else []
        return [(0, 1), *inner, *([(self.tiles - 1, 1)] if self.tiles > 1 else [])]


def plan(n: int, kernel_size: int) -> Axis:
    tile = max(TILE, kernel_size + 1)  # then each neighborhood moved inside at a border is within the halo of its tile
    if n < tile + kernel_size:
        return Axis(1, n, 0, 0, 0)
    tiles = -(-n // tile)
    queries = -(-n // tiles)
    outside = tiles * queries - n
    return Axis(tiles, queries, kernel_size // 2, outside // 2, outside - outside // 2)


def displacements(axis: Axis, n: int, kernel_size: int, device=None) -> tuple[Tensor, Tensor]:
    """For one tile of each run, the place in the table of each query and key, and whether the query sees the key.

    Both are (runs, queries, halo). Queries outside the map get what the nearest one inside has.
    """
    first = torch.tensor([run[0] for run in axis.runs], device=device) * axis.queries - axis.before
    queries = (first[:, None] + torch.arange(axis.queries, device=device)).clamp(0, n - 1).unsqueeze(-1)
    keys = (first[:, None] - axis.reach + torch.arange(axis.halo, device=device)).unsqueeze(-2)
    start = (queries - kernel_size // 2).clamp(0, n - kernel_size)
    seen = (keys >= start) & (keys < start + kernel_size)
    return keys - queries + kernel_size - 1, seen


def bias_and_mask(table: Tensor | None, rows: Axis, columns: Axis, size, kernel_size: int, like: Tensor) -> Tensor:
    """The bias (y, x, M, queries, keys) of one tile for each run of rows and of columns, -inf where a key is not seen.

    Without a table, M is 1.
    """
    dtype = grid.coordinate_dtype(like)
    y, seen_y = displacements(rows, size[0], kernel_size, like.device)
    x, seen_x = displacements(columns, size[1], kernel_size, like.device)
    seen = seen_y[:, None, :, None, :, None] & seen_x[:, None, :, None, :]  # (y, x, h, w, h, w): queries, then keys
    if table is None:
        bias = torch.zeros((), dtype=dtype, device=like.device)
    else:
        # A product with one-hot matrices has a product as its gradient too, and not a scatter.
        side = torch.arange(2 * kernel_size - 1, device=like.device)
        one_hot_y, one_hot_x = ((i.flatten().unsqueeze(-1) == side).to(dtype) for i in (y, x))
        with grid.full_precision(like):
            bias = one_hot_y @ table.to(dtype) @ one_hot_x.T
        bias = bias.unflatten(2, x.shape).unflatten(1, y.shape).permute(1, 4, 0, 2, 5, 3, 6)
    bias = bias.masked_fill(~seen.unsqueeze(2), -torch.inf)  # (y, x, M, h, w, h, w)
    return bias.flatten(5, 6).flatten(3, 4)


def tiles_of(x: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """Cuts queries (B, H, W, M, D) into tiles (B, y, x, M, queries, D)."""
    x = x.unflatten(1, (-1, rows.queries)).unflatten(3, (-1, columns.queries)).permute(0, 1, 3, 5, 2, 4, 6)
    return x.flatten(4, 5)


def halos_of(x: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """Cuts keys or values (B, H, W, M, D) into the halos of tiles (B, y, x, M, keys, D)."""
    x = x.unfold(1, rows.halo, rows.queries).unfold(2, columns.halo, columns.queries)
    return x.permute(0, 1, 2, 3, 5, 6, 4).flatten(4, 5)


def attend_tiles(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float, dropout: float, fused: bool) -> Tensor:
    """Attention of tiles (B, y, x, M, queries, D) to halos (B, y, x, M, keys, D), with a bias (M, queries, keys)."""
    if fused:
        tiles = q.shape[:3]
        q, k, v = (x.flatten(0, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, bias.unsqueeze(0), scale=scale).unflatten(0, tiles)
    return reference.average_values((q * scale) @ k.transpose(-2, -1) + bias, v, dropout)


def pad(x: Tensor, rows: Axis, columns: Axis, reach: tuple[int, int]) -> Tensor:
    """Adds zeros around a map (B, H, W, M, D), so that its tiles and a reach around them are inside."""
    around = [n + r for axis, r in zip((columns, rows), reach, strict=True) for n in (axis.before, axis.after)]
    return F.pad(x, (0, 0, 0, 0, *around)) if any(around) else x


def rows_at_once(k: Tensor, v: Tensor, rows: Axis, columns: Axis, tiles: int) -> int:
    """How many rows of so many tiles are within the budget."""
    B, M, D = k.shape[0], k.shape[3], k.shape[4] + v.shape[4]
    return max(1, BUDGET // (B * M * D * rows.halo * columns.halo * tiles * k.element_size()))


def neighborhood_attention(q, k, v, table, *, kernel_size, scale, dropout):
    H, W = q.shape[2:4]
    rows, columns = plan(H, kernel_size), plan(W, kernel_size)
    keeps = needs_gradient(q, k, v, table)
    fused = not keeps and not dropout
    bias = bias_and_mask(table, rows, columns, (H, W), kernel_size, q)
    bias = bias.to(q.dtype) if fused else bias
    q, k, v = (x.permute(0, 2, 3, 1, 4) for x in (q, k, v))  # (B, H, W, M, D)
    q = pad(q, rows, columns, (0, 0))
    k, v = (pad(x, rows, columns, (columns.reach, rows.reach)) for x in (k, v))

    strips = []
    for i, (first, number) in enumerate(rows.runs):
        strip = []
        for j, (left, across) in enumerate(columns.runs):
            parts = []
            step = number if keeps else rows_at_once(k, v, rows, columns, across)
            x, width = left * columns.queries, (across - 1) * columns.queries
            for top in range(first, first + number, step):
                down = min(step, first + number - top)
                y, height = top * rows.queries, (down - 1) * rows.queries
                tiles = q[:, y : y + height + rows.queries, x : x + width + columns.queries]
                halos = (t[:, y : y + height + rows.halo, x : x + width + columns.halo] for t in (k, v))
                tiles, halos = tiles_of(tiles, rows, columns), (halos_of(t, rows, columns) for t in halos)
                parts.append(attend_tiles(tiles, *halos, bias[i, j], scale, dropout, fused))
            strip.append(torch.cat(parts, 1))
        strips.append(torch.cat(strip, 2))
    out = torch.cat(strips, 1).unflatten(4, (rows.queries, columns.queries))  # (B, y, x, M, h, w, D)
    out = out.permute(0, 1, 4, 2, 5, 3, 6).flatten(3, 4).flatten(1, 2)  # (B, H, W, M, D), as the projection wants it
    out = out[:, rows.before : rows.before + H, columns.before : columns.before + W]
    return out.permute(0, 3, 1, 2, 4)


def why_not(q, **call) -> str | None:
    if exporting():
        return 'its tiles are for one map size, and an exported graph takes any'
    return None
