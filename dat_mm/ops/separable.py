# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Deformable attention that makes its logits a chunk at a time, and the position bias from products of small matrices.

Along an axis, the queries stand in the table of a key at even steps, t(i) = t(0) + i step. Interpolation is a product
with hat(u) = max(0, 1 - |u|): the bias of a key over the map is A_y Table A_x, where A_y[i, y] = hat(t(i) - y) and A_x
likewise. Outside the table it is zero by itself. A key and a tile of queries need only a window of the table.

Logits, weights and their gradients exist for one chunk at a time, which fits in the cache: some keys, the heads of a
group, and one tile of queries. The backward makes them again from the log of each query's sum. Powers are of 2, because
PyTorch computes these faster than powers of e.

n pairs of image and group, m heads of a group, D head width, h x w a tile of queries, K keys, c of them in a chunk.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import grid, library
from .tracing import exporting, needs_gradient

BUDGET = {'cpu': 2 << 20}  # bytes of the logits of a chunk
BUDGET_ELSEWHERE = 256 << 20
TILE_WIDTH = 40  # queries of a tile, at most
TILE_AREA = 1024
LARGEST_SUM = 2.0**60
LOG2_E = math.log2(math.e)


class Tiles(NamedTuple):
    """The map of queries, cut into tiles of one size. The last ones may reach beyond the map."""

    rows: int
    columns: int
    height: int
    width: int

    @property
    def area(self):
        return self.height * self.width

    def each(self):
        return ((i, j) for i in range(self.rows) for j in range(self.columns))


def hat(u: Tensor) -> Tensor:
    return u.abs().neg_().add_(1).clamp_(min=0)


def slope(u: Tensor) -> Tensor:
    """The derivative of hat. At a corner it is the one to the right, as in grid_sample."""
    u = u.floor()
    return (u == -1).to(u.dtype).sub_((u == 0).to(u.dtype))


def cut(n: int, longest: int) -> tuple[int, int]:
    """How many tiles an axis of n is cut into, and the length of one, at most `longest`."""
    tiles = -(-n // longest)
    return tiles, -(-n // tiles)


def tile_map(height: int, width: int) -> Tiles:
    """Cuts a map into tiles.

    They are wide enough for the products of the bias, and small enough for small windows and many keys in a chunk.
    """
    columns, w = cut(width, TILE_WIDTH)
    rows, h = cut(height, TILE_AREA // w)
    return Tiles(rows, columns, h, w)


def window_of(tiles: Tiles, size, table_size, convention: str) -> list[int]:
    """How many cells of a table a tile may need, along y and x."""
    steps = grid.table_steps(size, table_size, convention)
    return [int((n - 1) * step) + 3 for n, step in zip((tiles.height, tiles.width), steps, strict=True)]


class TableProducts:
    """The position bias of a map of queries for keys at points (n, K, 2), scaled for powers of 2.

    Pair i belongs to group i % G.
    """

    def __init__(self, table: Tensor, points: Tensor, size, tiles: Tiles, convention: str):
        self.G, self.m, *self.table_size = table.shape  # (G, m, 2T_h-1, 2T_w-1)
        self.first = grid.table_coordinates(points, size, self.table_size, convention)
        self.steps = grid.table_steps(size, self.table_size, convention)
        self.tile = tiles.height, tiles.width
        self.window = wy, wx = window_of(tiles, size, self.table_size, convention)
        # Each window along x of each row of the table is a row here, to be fetched whole.
        # They are (G Y X, m wx), with Y and X as in `ring`.
        self.ring = self.table_size[0] + 2, self.table_size[1] + wx + 1
        padded = F.pad(table * LOG2_E, (wx, wx, 1, 1)).unfold(3, wx, 1)  # (G, m, Y, X, wx)
        self.rows = padded.permute(0, 2, 3, 1, 4).flatten(3).flatten(0, 2)

    def place(self, pairs: slice, tile, keys: slice, axis: int) -> tuple[Tensor, Tensor]:
        """The first cell of each key's window (n, c), and how far queries are from cells (n c, cells, queries)."""
        step, length = self.steps[axis], self.tile[axis]
        first = self.first[pairs, keys, axis] + tile[axis] * length * step
        floor = first.floor()
        queries = torch.arange(length, dtype=first.dtype, device=first.device) * step
        cells = torch.arange(self.window[axis], dtype=first.dtype, device=first.device).unsqueeze(-1)
        return floor.long(), (first - floor).view(-1, 1, 1) + (queries - cells)

    def rows_of(self, pairs: slice, y: Tensor, x: Tensor) -> Tensor:
        """The numbers (n c wy,) of the rows that make the windows which begin at cells y and x (n, c)."""
        group = torch.arange(pairs.start, pairs.stop, device=y.device).view(-1, 1, 1) % self.G
        y = (y.unsqueeze(-1) + torch.arange(1, self.window[0] + 1, device=y.device)).clamp_(0, self.ring[0] - 1)
        x = (x.unsqueeze(-1) + self.window[1]).clamp_(0, self.ring[1] - 1)
        return ((group * self.ring[0] + y) * self.ring[1] + x).flatten()

    def write(self, logits: Tensor, pairs: slice, tile, keys: slice) -> 'Products':
        """Writes the bias of a chunk into its logits (m, n c, h, w), and returns what the bias was made of."""
        y, from_y = self.place(pairs, tile, keys, 0)
        x, from_x = self.place(pairs, tile, keys, 1)
        at = self.rows_of(pairs, y, x)
        windows = self.rows.index_select(0, at).unflatten(0, (-1, self.window[0]))
        hat_y, hat_x = hat(from_y), hat(from_x)
        rows = torch.bmm(hat_y.transpose(1, 2), windows).unflatten(2, (self.m, -1))
        for j, head in enumerate(logits):
            torch.bmm(rows[:, :, j], hat_x, out=head)
        return Products(at, from_y, from_x, hat_y, hat_x, windows, rows)

    def backward(self, made: 'Products', grad: Tensor, grad_rows: Tensor, grad_first: Tensor):
        """Adds what the gradient of the logits (m, n c, h, w) gives to those of `rows` and of `first` (n, c, 2)."""
        along = made.hat_x.new_empty(self.m, len(made.hat_x), self.window[1], self.tile[0])
        grad_x = torch.zeros_like(made.hat_x)
        for j, head in enumerate(grad):
            torch.bmm(made.hat_x, head.transpose(1, 2), out=along[j])
            grad_x.baddbmm_(made.rows[:, :, j].transpose(1, 2), head)
        along = along.transpose(0, 1).flatten(1, 2)  # (n c, m wx, h)
        grad_y = torch.bmm(made.windows, along)
        at = [(g * slope(u)).sum((1, 2)) for g, u in ((grad_y, made.from_y), (grad_x, made.from_x))]
        grad_first += torch.stack(at, -1).view(grad_first.shape) / LOG2_E
        grad_windows = torch.bmm(made.hat_y, along.transpose(1, 2))  # (n c, wy, m wx)
        grad_rows.index_add_(0, made.at, grad_windows.flatten(0, 1))

    def to_table(self, grad: Tensor) -> Tensor:
        """The gradient of the table (M, 2T_h-1, 2T_w-1), from that of `rows`."""
        (wx, X), last = (self.window[1], self.table_size[1]), self.ring[1]
        grad = grad.view(self.G, *self.ring, self.m, wx)
        table = grad.new_zeros(self.G, self.ring[0], X + 2 * wx, self.m)
        for j in range(wx):
            table[:, :, j : j + last] += grad[..., j]
        return table[:, 1:-1, wx:-wx].permute(0, 3, 1, 2).flatten(0, 1).contiguous()

    def to_points(self, grad: Tensor) -> Tensor:
        """The gradient of the points (n, K, 2), from that of `first`."""
        return grad * grad.new_tensor([(1 - n) / 4 for n in self.table_size])


class Products(NamedTuple):
    """The parts that the bias of a chunk was made of, for its backward."""

    at: Tensor  # rows (n c wy,)
    from_y: Tensor  # (n c, wy, h)
    from_x: Tensor  # (n c, wx, w)
    hat_y: Tensor
    hat_x: Tensor
    windows: Tensor  # (n c, wy, m wx)
    rows: Tensor  # (n c, h, m, wx)


class Chunks:
    """The inputs in chunks. Forward and backward go through them in the same order: pairs, tiles of queries, keys."""

    def __init__(self, q, k, v, points, table, convention, scale):
        B, M, H, W, D = q.shape
        self.B, self.G, self.K, self.D = B, points.shape[1], k.shape[2], D
        self.m, self.size, self.scale = M // self.G, (H, W), scale
        self.dtype = grid.coordinate_dtype(*(x for x in (q, k, v, points, table) if x is not None))
        self.tiles = tile_map(H, W)
        self.bias = None
        if table is not None:
            table, points = table.to(self.dtype).unflatten(0, (self.G, -1)), points.to(self.dtype).flatten(0, 1)
            self.bias = TableProducts(table, points, (H, W), self.tiles, convention)
        self.q, self.k, self.v = self.map(q), self.pairs(k), self.pairs(v)
        budget = BUDGET.get(q.device.type, BUDGET_ELSEWHERE) // (self.m * self.tiles.area * self.dtype.itemsize)
        n = B * self.G
        self.at_once = cut(n, max(1, min(n, budget // self.K)))[1], cut(self.K, max(1, min(self.K, budget)))[1]

    def __iter__(self):
        """The slices of pairs, one after the other."""
        return (slice(i, min(i + self.at_once[0], len(self.q))) for i in range(0, len(self.q), self.at_once[0]))

    def key_slices(self) -> list[slice]:
        return [slice(i, min(i + self.at_once[1], self.K)) for i in range(0, self.K, self.at_once[1])]

    def scratch(self) -> Tensor:
        """Memory for the logits of a chunk."""
        return self.q.new_empty(self.at_once[0] * self.at_once[1] * self.m * self.tiles.area, dtype=self.dtype)

    def view(self, scratch: Tensor, pairs: slice, keys: slice) -> Tensor:
        """Scratch memory as (m, n c, h, w)."""
        shape = self.m, (pairs.stop - pairs.start) * (keys.stop - keys.start), self.tiles.height, self.tiles.width
        return scratch[: math.prod(shape)].view(shape)

    def pairs(self, x: Tensor) -> Tensor:
        """A tensor (B, M, ...) as (n, m, ...)."""
        return x.unflatten(1, (self.G, -1)).flatten(0, 1)

    def map(self, x: Tensor) -> Tensor:
        """A map (B, M, H, W, D) as (n, m, H, W, D), padded to whole tiles."""
        tiles = self.tiles
        bottom, right = tiles.rows * tiles.height - self.size[0], tiles.columns * tiles.width - self.size[1]
        x = self.pairs(x)
        return F.pad(x, (0, 0, 0, right, 0, bottom)) if bottom or right else x

    def empty_map(self, width: int) -> Tensor:
        tiles = self.tiles
        shape = tiles.rows * tiles.height, tiles.columns * tiles.width, self.m, width
        return self.q.new_empty(len(self.q), *shape, dtype=self.dtype).permute(0, 3, 1, 2, 4)

    def from_map(self, x: Tensor) -> Tensor:
        """The inverse of `map`. In memory it lies as (B, H, W, M, D), as the projection wants it."""
        x = x[:, :, : self.size[0], : self.size[1]].unflatten(0, (self.B, self.G))  # (B, G, m, H, W, D)
        return x.permute(0, 3, 4, 1, 2, 5).flatten(3, 4).contiguous().permute(0, 3, 1, 2, 4)

    def tile(self, x: Tensor, pairs: slice, tile) -> Tensor:
        """A view (m, n, D, h, w) of one tile of a map (n, m, H, W, D)."""
        (i, j), (h, w) = tile, self.tiles[2:]
        return x[pairs, :, i * h : (i + 1) * h, j * w : (j + 1) * w].permute(1, 0, 4, 2, 3)

    def queries(self, x: Tensor, pairs: slice, tile, last: Tensor | float, factor: float = 1.0) -> Tensor:
        """A tile times a factor, as a matrix (m n, D + 1, h w), with `last` as one more channel."""
        x = self.tile(x, pairs, tile)
        out = x.new_empty(*x.shape[:2], x.shape[2] + 1, *x.shape[3:], dtype=self.dtype)
        out[:, :, :-1] = x
        out[:, :, :-1] *= factor
        out[:, :, -1] = last
        return out.flatten(3).flatten(0, 1)

    def keys(self, x: Tensor, pairs: slice) -> Tensor:
        """Keys or values (n, m, K, D) as (m n, K, D + 1), with a channel of ones."""
        x = x[pairs].transpose(0, 1).to(self.dtype)
        return F.pad(x, (0, 1), value=1.0).flatten(0, 1)

    def logits(self, scratch, q: Tensor, k: Tensor, pairs: slice, tile, keys: slice) -> tuple[Tensor, Products | None]:
        """The logits (m n, c, h w) of q (m n, D + 1, h w) and k (m n, K, D + 1), made in scratch memory.

        With them comes what their bias was made of, or None.
        """
        logits = self.view(scratch, pairs, keys)
        matrix = logits.view(len(q), -1, self.tiles.area)
        if self.bias is None:
            return torch.bmm(k[:, keys], q, out=matrix), None
        windows = self.bias.write(logits, pairs, tile, keys)
        return matrix.baddbmm_(k[:, keys], q), windows


def forward(q, k, v, points, table, convention: str, scale: float) -> tuple[Tensor, Tensor]:
    """The output (B, M, H, W, D), and the log2 of the sum of each query's powers (B, M, H, W)."""
    chunks = Chunks(q, k, v, points, table, convention, scale)
    scratch, slices = chunks.scratch(), chunks.key_slices()
    out, log_sum = chunks.empty_map(v.shape[-1]), chunks.empty_map(1)
    for pairs in chunks:
        keys, values = chunks.keys(chunks.k, pairs), chunks.keys(chunks.v, pairs).transpose(1, 2)
        for tile in chunks.tiles.each():
            queries = chunks.queries(chunks.q, pairs, tile, 0.0, scale * LOG2_E)
            total = queries.new_empty(len(queries), values.shape[1], chunks.tiles.area)
            # Powers are of the distance to the largest logit of the first keys, which the last channel of the queries
            # takes off. Where that logit is far below the largest of all, all is done again with the largest of all.
            largest = None
            for exact in (False, True):
                if exact:
                    queries[:, -1] = 0
                    chunk = [chunks.logits(scratch, queries, keys, pairs, tile, part)[0].amax(1) for part in slices]
                    largest = torch.stack(chunk).amax(0)
                    queries[:, -1] = -largest
                for i, part in enumerate(slices):
                    logits, _ = chunks.logits(scratch, queries, keys, pairs, tile, part)
                    if largest is None:
                        largest = logits.amax(1)
                        queries[:, -1] = -largest
                        logits -= largest.unsqueeze(1)
                    torch.baddbmm(total, values[:, :, part], logits.exp2_(), beta=float(i > 0), out=total)
                if len(slices) == 1 or bool((total[:, -1] < LARGEST_SUM).all()):
                    break
            shape = *chunks.tile(out, pairs, tile).shape[:2], -1, *chunks.tiles[2:]
            chunks.tile(out, pairs, tile).copy_((total[:, :-1] / total[:, -1:]).view(shape))
            chunks.tile(log_sum, pairs, tile).copy_((largest + total[:, -1].log2()).view(shape))
    return chunks.from_map(out).to(v.dtype), chunks.from_map(log_sum).squeeze(-1)


def backward(grad, q, k, v, points, table, out, log_sum, convention: str, scale: float) -> list[Tensor]:
    """The gradients of q, k, v, points and table, or of the first three where there is no table."""
    chunks = Chunks(q, k, v, points, table, convention, scale)
    bias, slices = chunks.bias, chunks.key_slices()
    weight_scratch, grad_scratch = chunks.scratch(), chunks.scratch()
    grad, log_sum = grad.to(chunks.dtype), log_sum.to(chunks.dtype)
    shared = chunks.map((grad * out).sum(-1, keepdim=True))  # the softmax takes it off the gradient of each weight
    grad, log_sum = chunks.map(grad), chunks.map(log_sum.unsqueeze(-1))
    grad_q = chunks.empty_map(q.shape[-1])
    grad_k, grad_v = (x.new_empty(x.shape, dtype=chunks.dtype) for x in (chunks.k, chunks.v))
    if bias is not None:
        grad_rows, grad_first = torch.zeros_like(bias.rows), torch.zeros_like(bias.first)
    for pairs in chunks:
        keys, values = chunks.keys(chunks.k, pairs), chunks.keys(chunks.v, pairs)
        grad_keys, grad_values = (
            torch.zeros_like(x.transpose(1, 2), memory_format=torch.contiguous_format) for x in (keys, values)
        )
        for tile in chunks.tiles.each():
            last = -chunks.tile(log_sum, pairs, tile).squeeze(2)
            queries = chunks.queries(chunks.q, pairs, tile, last, scale * LOG2_E)
            grads = chunks.queries(grad, pairs, tile, -chunks.tile(shared, pairs, tile).squeeze(2))
            grad_queries = torch.zeros_like(queries)
            for part in slices:
                weights, windows = chunks.logits(weight_scratch, queries, keys, pairs, tile, part)
                weights.exp2_()  # (m n, c, h w)
                grad_values[:, :, part] += torch.bmm(grads, weights.transpose(1, 2))
                grad_logits = chunks.view(grad_scratch, pairs, part)
                matrix = torch.bmm(values[:, part], grads, out=grad_logits.view_as(weights)).mul_(weights)
                grad_keys[:, :, part] += torch.bmm(queries, matrix.transpose(1, 2))
                grad_queries.baddbmm_(keys[:, part].transpose(1, 2), matrix)
                if windows is not None:
                    bias.backward(windows, grad_logits, grad_rows, grad_first[pairs, part])
            target = chunks.tile(grad_q, pairs, tile)
            torch.mul(grad_queries[:, :-1].view(target.shape), scale, out=target)
        for total, part, factor in ((grad_k, grad_keys, 1 / LOG2_E), (grad_v, grad_values, 1)):
            part = part[:, :-1].transpose(1, 2).unflatten(0, (chunks.m, -1)).transpose(0, 1)
            torch.mul(part, factor, out=total[pairs])
    grads = [chunks.from_map(grad_q).to(q.dtype)]
    grads += [x.unflatten(0, (chunks.B, chunks.G)).flatten(1, 2).to(q.dtype) for x in (grad_k, grad_v)]
    if bias is None:
        return grads
    return [
        *grads,
        bias.to_points(grad_first).view_as(points).to(points.dtype),
        bias.to_table(grad_rows).to(table.dtype),
    ]


def _fake_forward(q, k, v, points, table, convention, scale):
    B, M, H, W, _ = q.shape
    dtype = grid.coordinate_dtype(*(x for x in (q, k, v, points, table) if x is not None))
    out = v.new_empty(B, H, W, M, v.shape[-1]).permute(0, 3, 1, 2, 4)
    return out, q.new_empty(B, H, W, M, dtype=dtype).permute(0, 3, 1, 2)


_attention = library.register_deformable('separable', forward, backward, _fake_forward)


def deformable_attention(q, k, v, points, table, *, bias, convention, scale, dropout):
    return _attention(q, k, v, points, table, convention, scale)


def why_not(q, bias, dropout, **call) -> str | None:
    if reason := library.why_not_table(bias, dropout):
        return reason
    return 'an exported graph is of plain operators' if exporting() else None


def is_faster(q, k, v, points, table, convention, **call) -> bool:
    """Whether it is faster, as measured by tools/measure_backends.py.

    It is not on small maps, nor where a tile spans many cells of the table. In training, the logits that the reference
    keeps must be too many for the caches.
    """
    (B, M, H, W, _), K = q.shape, k.shape[2]
    tiles = tile_map(H, W)
    wy, wx = (0, 0) if table is None else window_of(tiles, (H, W), table.shape[1:], convention)
    products = wx + wy * wx / tiles.width  # multiply-adds of the bias for each logit
    queries, logits = H * W, B * M * H * W * K
    if needs_gradient(q, k, v, points, table):
        return products < 40 and queries >= 512 and logits >= 2 << 20
    return products < 40 and queries >= 256 and logits >= 1 << 20
