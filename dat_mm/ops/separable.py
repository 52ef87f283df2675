# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Deformable attention that makes its logits a chunk at a time, and the position bias from products of small matrices.

Along an axis, the queries stand in the table of a key at even steps, t(i) = t(0) + i step. Interpolation is a product
with hat(u) = max(0, 1 - |u|): the bias of a key over the map is A_y Table A_x, where A_y[i, y] = hat(t(i) - y) and A_x
likewise. Outside the table it is zero by itself. A key and a tile of queries need only a window of the table.

Logits, weights and their gradients exist for one chunk at a time: one head, some keys, and some jobs. A job is a pair
of image and group with one tile of queries. Jobs are the first axis of every product of a chunk, so that each thread of
a CPU has jobs of its own. It reads what it wrote itself, which matters where threads do not share a cache.

The backward makes the logits again from the log of each query's sum. Powers are of 2, because PyTorch computes these
faster than powers of e.

n pairs, P of them and T tiles in a chunk, J = P T jobs, m heads of a group, D head width, h x w a tile of queries,
K keys, c of them in a chunk.
"""

import math
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import grid, library
from .tracing import exporting, needs_gradient

BUDGET = {'cpu': 2 << 20}  # bytes of the logits of a chunk and of their gradients, for each thread
BUDGET_ELSEWHERE = 64 << 20
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

    @property
    def number(self):
        return self.rows * self.columns


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
        self.tiles = tiles
        self.window = wy, wx = window_of(tiles, size, self.table_size, convention)
        # Each window along x of each row of the table is a row here, to be fetched whole.
        # They are (G Y X, m wx), with Y and X as in `ring`.
        self.ring = self.table_size[0] + 2 * wy, self.table_size[1] + wx + 1
        padded = F.pad(table * LOG2_E, (wx, wx, wy, wy)).unfold(3, wx, 1)  # (G, m, Y, X, wx)
        self.rows = padded.permute(0, 2, 3, 1, 4).flatten(3).flatten(0, 2)
        self.below = self.ring[1] * torch.arange(wy, device=table.device)  # from the first row of a window to each
        self.apart = [self.from_cells(axis) for axis in (0, 1)]

    def from_cells(self, axis: int) -> Tensor:
        """How far each query of a tile is from each cell of a window that begins where the first query is."""
        like = dict(dtype=self.first.dtype, device=self.first.device)
        queries = torch.arange(self.tiles[2 + axis], **like) * self.steps[axis]
        return queries - torch.arange(self.window[axis], **like).unsqueeze(-1)

    def places(self, pairs: slice) -> 'Places':
        """Where the windows of all keys and tiles begin."""
        tiles, group = self.tiles, torch.arange(pairs.start, pairs.stop, device=self.first.device) % self.G
        at, from_cell = group.view(-1, 1, 1, 1), []
        for axis, tile in enumerate((tiles.height, tiles.width)):
            starts = torch.arange(tiles[axis], dtype=self.first.dtype, device=self.first.device)
            first = self.first[pairs, None, :, axis] + (starts * (tile * self.steps[axis])).unsqueeze(-1)
            cell = first.floor()
            first, cell = (x.unsqueeze(2 - axis).expand(-1, *tiles[:2], -1) for x in (first - cell, cell.long()))
            cell = cell.clamp(-self.window[axis], self.table_size[axis]) + self.window[axis]
            at = at * self.ring[axis] + cell
            from_cell.append(first.flatten(1, 2))
        return Places(at.flatten(1, 2), *from_cell)

    def factors(self, places: 'Places', tiles: range, keys: slice) -> 'Factors':
        at, *from_cell = (x[:, tiles.start : tiles.stop, keys].reshape(-1, 1) for x in places)
        from_y, from_x = (x.unsqueeze(-1) + apart for x, apart in zip(from_cell, self.apart, strict=True))
        at = (at + self.below).flatten()
        windows = self.rows.index_select(0, at).unflatten(0, (-1, self.window[0]))
        hat_y, hat_x = hat(from_y), hat(from_x)
        rows = torch.bmm(hat_y.transpose(1, 2), windows).unflatten(2, (self.m, -1))
        return Factors(at, from_y, from_x, hat_y, hat_x, windows, rows)

    def to_table(self, grad: Tensor) -> Tensor:
        """The gradient of the table (M, 2T_h-1, 2T_w-1), from that of `rows`."""
        (wy, wx), X, last = self.window, self.table_size[1], self.ring[1]
        grad = grad.view(self.G, *self.ring, self.m, wx)
        table = grad.new_zeros(self.G, self.ring[0], X + 2 * wx, self.m)
        for j in range(wx):
            table[:, :, j : j + last] += grad[..., j]
        return table[:, wy:-wy, wx:-wx].permute(0, 3, 1, 2).flatten(0, 1).contiguous()

    def to_points(self, grad: Tensor) -> Tensor:
        """The gradient of the points (n, K, 2), from that of `first`."""
        return grad * grad.new_tensor([(1 - n) / 4 for n in self.table_size])


class Places(NamedTuple):
    """Where the windows of the table begin, of each key and tile of some pairs (P, T, K), T being all tiles."""

    at: Tensor  # the number of the first row
    from_y: Tensor  # how far the first query is from the first cell
    from_x: Tensor


class Factors(NamedTuple):
    """What the bias of a chunk is a product of, for all heads of a group."""

    at: Tensor  # rows (J c wy,)
    from_y: Tensor  # (J c, wy, h)
    from_x: Tensor  # (J c, wx, w)
    hat_y: Tensor
    hat_x: Tensor
    windows: Tensor  # (J c, wy, m wx)
    rows: Tensor  # (J c, h, m, wx)

    def write(self, head: int, logits: Tensor) -> None:
        """Writes the bias of a head into its logits (J, c, h w)."""
        torch.bmm(self.rows[:, :, head], self.hat_x, out=self.maps(logits))

    def maps(self, x: Tensor) -> Tensor:
        """The logits of a head, or what is like them, as (J c, h, w)."""
        return x.view(len(self.hat_x), self.rows.shape[1], -1)


class FactorGradients:
    """The gradients of the bias of a chunk, gathered from one head after the other."""

    def __init__(self, factors: Factors):
        self.factors = factors
        n, h, m, wx = factors.rows.shape
        self.along = factors.hat_x.new_empty(m, n, wx, h)
        self.grad_x = torch.zeros_like(factors.hat_x)

    def add(self, head: int, grad: Tensor) -> None:
        """Takes the gradient of a head's logits (J, c, h w)."""
        made, grad = self.factors, self.factors.maps(grad)
        torch.bmm(made.hat_x, grad.transpose(1, 2), out=self.along[head])
        self.grad_x.baddbmm_(made.rows[:, :, head].transpose(1, 2), grad)

    def finish(self, grad_rows: Tensor, grad_first: Tensor) -> None:
        """Adds the sums to the gradients of `rows` and of `first` (P, c, 2)."""
        made = self.factors
        along = self.along.transpose(0, 1).flatten(1, 2)  # (J c, m wx, h)
        grad_y = torch.bmm(made.windows, along)
        at = [(g * slope(u)).sum((1, 2)) for g, u in ((grad_y, made.from_y), (self.grad_x, made.from_x))]
        P, c, _ = grad_first.shape
        grad_first += torch.stack(at, -1).view(P, -1, c, 2).sum(1) / LOG2_E
        grad_windows = torch.bmm(made.hat_y, along.transpose(1, 2))  # (J c, wy, m wx)
        grad_rows.index_add_(0, made.at, grad_windows.flatten(0, 1))


class Chunks:
    """The inputs in chunks. Forward and backward go through them in the same order: pairs, tiles of queries, keys."""

    def __init__(self, q, k, v, points, table, convention, gradients: bool):
        B, M, H, W, _ = q.shape
        self.B, self.G, self.K = B, points.shape[1], k.shape[2]
        self.m, self.size = M // self.G, (H, W)
        self.dtype = grid.coordinate_dtype(*(x for x in (q, k, v, points, table) if x is not None))
        self.tiles = tile_map(H, W)
        self.bias = None
        if table is not None:
            table, points = table.to(self.dtype).unflatten(0, (self.G, -1)), points.to(self.dtype).flatten(0, 1)
            self.bias = TableProducts(table, points, (H, W), self.tiles, convention)
        self.q, self.k, self.v = self.map(q), self.pairs(k), self.pairs(v)
        on_cpu = q.device.type == 'cpu'
        key = self.tiles.area * self.dtype.itemsize * (2 if gradients else 1)  # bytes
        keys = max(1, BUDGET.get(q.device.type, BUDGET_ELSEWHERE) // key)
        jobs = (torch.get_num_threads() if on_cpu else 1) * max(1, keys // self.K)
        self.keys_at_once = cut(self.K, min(self.K, keys))[1]
        self.tiles_at_once = min(jobs, self.tiles.number)
        self.pairs_at_once = min(jobs // self.tiles_at_once, len(self.q))

    def pair_slices(self) -> list[slice]:
        return slices(len(self.q), self.pairs_at_once)

    def key_slices(self) -> list[slice]:
        return slices(self.K, self.keys_at_once)

    def tile_ranges(self) -> list[range]:
        tiles = range(self.tiles.number)
        return [tiles[part] for part in slices(len(tiles), self.tiles_at_once)]

    def scratch(self) -> Tensor:
        """Memory for the logits of a chunk."""
        shape = self.pairs_at_once, self.tiles_at_once, self.keys_at_once, self.tiles.area
        return self.q.new_empty(math.prod(shape), dtype=self.dtype)

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

    def tile(self, x: Tensor, pairs: slice, tile: int) -> Tensor:
        """A view (m, P, D, h, w) of one tile of a map (n, m, H, W, D)."""
        (i, j), (h, w) = divmod(tile, self.tiles.columns), self.tiles[2:]
        return x[pairs, :, i * h : (i + 1) * h, j * w : (j + 1) * w].permute(1, 0, 4, 2, 3)

    def take(self, x: Tensor, pairs: slice, tiles: range) -> Tensor:
        """Tiles of a map (n, m, H, W, D) as (m, J, D, h w)."""
        x = torch.stack([self.tile(x, pairs, tile) for tile in tiles], 2)
        return x.flatten(4).flatten(1, 2).to(self.dtype)

    def put(self, x: Tensor, pairs: slice, tiles: range, out: Tensor) -> None:
        """The inverse of `take`: writes (m, J, D, h w) into a map."""
        x = x.unflatten(3, self.tiles[2:]).unflatten(1, (-1, len(tiles)))
        for t, tile in enumerate(tiles):
            self.tile(out, pairs, tile).copy_(x[:, :, t])

    def keys(self, x: Tensor, pairs: slice) -> Tensor:
        """Keys or values (n, m, K, D) as (m, P, K, D + 1), with a channel of ones."""
        return F.pad(x[pairs].transpose(0, 1).to(self.dtype), (0, 1), value=1.0)

    def places(self, pairs: slice) -> Places | None:
        return None if self.bias is None else self.bias.places(pairs)

    def factors(self, places: Places | None, tiles: range, keys: slice) -> Factors | None:
        return None if places is None else self.bias.factors(places, tiles, keys)

    def logits(self, scratch, q: Tensor, k: Tensor, factors: Factors | None, head: int) -> Tensor:
        """The logits (J, c, h w) of a head, for q (J, D + 1, h w) and k (J, c, D + 1). They lie in scratch memory."""
        shape = len(q), k.shape[1], q.shape[2]
        logits = scratch[: math.prod(shape)].view(shape)
        if factors is None:
            return torch.bmm(k, q, out=logits)
        factors.write(head, logits)
        return logits.baddbmm_(k, q)

    def each_head(self, scratch, queries, keys, places: Places | None, tiles: range, part: slice):
        """Each head and its logits, for queries and keys of each head (J, ...). All lie in the same memory."""
        factors = self.factors(places, tiles, part)
        for head, (query, key) in enumerate(zip(queries, keys, strict=True)):
            yield head, self.logits(scratch, query, key[:, part], factors, head)


def slices(n: int, length: int) -> list[slice]:
    """Cuts n into slices of one length. The last may be shorter."""
    return [slice(i, min(i + length, n)) for i in range(0, n, length)]


def for_jobs(x: Tensor, tiles: range) -> tuple[Tensor, ...]:
    """What the pairs of each head have (m, P, ...) for each of their jobs: for each head (J, ...)."""
    return x.unsqueeze(2).expand(-1, -1, len(tiles), *x.shape[2:]).flatten(1, 2).unbind()


def of_pairs(x: Tensor, tiles: range) -> Tensor:
    """The sum over the jobs (J, ...) of each pair (P, ...)."""
    return x.unflatten(0, (-1, len(tiles))).sum(1)


def forward(q, k, v, points, table, convention: str, scale: float) -> tuple[Tensor, Tensor]:
    """The output (B, M, H, W, D), and the log2 of the sum of each query's powers (B, M, H, W)."""
    chunks = Chunks(q, k, v, points, table, convention, gradients=False)
    scratch, key_slices = chunks.scratch(), chunks.key_slices()
    out, log_sum = chunks.empty_map(v.shape[-1]), chunks.empty_map(1)
    for pairs in chunks.pair_slices():
        pair_keys, pair_values = chunks.keys(chunks.k, pairs), chunks.keys(chunks.v, pairs).transpose(2, 3)
        places = chunks.places(pairs)
        for tiles in chunks.tile_ranges():
            keys, values = (for_jobs(x, tiles) for x in (pair_keys, pair_values))
            queries = F.pad(chunks.take(chunks.q, pairs, tiles) * (scale * LOG2_E), (0, 0, 0, 1))
            shift = queries[:, :, -1]  # the last channel of a query, which meets that of ones
            total = queries.new_empty(*queries.shape[:2], v.shape[-1] + 1, queries.shape[-1])
            totals = total.unbind()
            each = partial(chunks.each_head, scratch, queries.unbind(), keys, places, tiles)
            # Powers are of the distance to the largest logit of the first keys. Where that one is far below the largest
            # of all, all is done again with the largest of all.
            for exact in (False, True):
                if exact:
                    largest = torch.full_like(shift, -math.inf)
                    shift.zero_()
                    for part in key_slices:
                        for head, logits in each(part):
                            torch.maximum(largest[head], logits.amax(1), out=largest[head])
                    shift.copy_(-largest)
                for i, part in enumerate(key_slices):
                    for head, logits in each(part):
                        if i == 0 and not exact:
                            shift[head] = -logits.amax(1)
                            logits += shift[head].unsqueeze(1)
                        value = values[head][:, :, part]
                        torch.baddbmm(totals[head], value, logits.exp2_(), beta=float(i > 0), out=totals[head])
                if len(key_slices) == 1 or bool((total[:, :, -1] < LARGEST_SUM).all()):
                    break
            chunks.put(total[:, :, :-1] / total[:, :, -1:], pairs, tiles, out)
            chunks.put((total[:, :, -1].log2() - shift).unsqueeze(2), pairs, tiles, log_sum)
    return chunks.from_map(out).to(v.dtype), chunks.from_map(log_sum).squeeze(-1)


def backward(grad, q, k, v, points, table, out, log_sum, convention: str, scale: float) -> list[Tensor]:
    """The gradients of q, k, v, points and table, or of the first three where there is no table."""
    chunks = Chunks(q, k, v, points, table, convention, gradients=True)
    bias = chunks.bias
    weight_scratch, grad_scratch = chunks.scratch(), chunks.scratch()
    grad, log_sum = grad.to(chunks.dtype), log_sum.to(chunks.dtype)
    shared = chunks.map((grad * out).sum(-1, keepdim=True))  # the softmax takes it off the gradient of each weight
    grad, log_sum = chunks.map(grad), chunks.map(log_sum.unsqueeze(-1))
    grad_q = chunks.empty_map(q.shape[-1])
    grad_k, grad_v = (x.new_empty(x.shape, dtype=chunks.dtype) for x in (chunks.k, chunks.v))
    if bias is not None:
        grad_rows, grad_first = torch.zeros_like(bias.rows), torch.zeros_like(bias.first)
    for pairs in chunks.pair_slices():
        pair_keys, pair_values = chunks.keys(chunks.k, pairs), chunks.keys(chunks.v, pairs)
        places = chunks.places(pairs)
        grad_keys, grad_values = (
            torch.zeros_like(x.transpose(2, 3), memory_format=torch.contiguous_format) for x in (pair_keys, pair_values)
        )
        for tiles in chunks.tile_ranges():
            keys, values = (for_jobs(x, tiles) for x in (pair_keys, pair_values))
            queries, grads, last, taken = (chunks.take(x, pairs, tiles) for x in (chunks.q, grad, log_sum, shared))
            queries = torch.cat([queries * (scale * LOG2_E), -last], 2)
            grads = torch.cat([grads, -taken], 2)
            grad_queries = torch.zeros_like(queries)
            for part in chunks.key_slices():
                factors = chunks.factors(places, tiles, part)
                gradients = None if factors is None else FactorGradients(factors)
                for head in range(chunks.m):
                    key, value = keys[head][:, part], values[head][:, part]
                    weights = chunks.logits(weight_scratch, queries[head], key, factors, head).exp2_()  # (J, c, h w)
                    grad_values[head, :, :, part] += of_pairs(torch.bmm(grads[head], weights.transpose(1, 2)), tiles)
                    grad_logits = chunks.logits(grad_scratch, grads[head], value, None, head).mul_(weights)
                    grad_keys[head, :, :, part] += of_pairs(
                        torch.bmm(queries[head], grad_logits.transpose(1, 2)), tiles
                    )
                    grad_queries[head].baddbmm_(key.transpose(1, 2), grad_logits)
                    if gradients is not None:
                        gradients.add(head, grad_logits)
                if gradients is not None:
                    gradients.finish(grad_rows, grad_first[pairs, part])
            chunks.put(grad_queries[:, :, :-1] * scale, pairs, tiles, grad_q)
        for total, part, factor in ((grad_k, grad_keys, 1 / LOG2_E), (grad_v, grad_values, 1)):
            torch.mul(part[:, :, :-1].permute(1, 0, 3, 2), factor, out=total[pairs])
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
