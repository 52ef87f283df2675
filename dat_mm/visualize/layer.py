# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What one deformable layer did with one image: its points, and its attention made again from queries and keys.

Fused kernels never hold attention in memory. It is made again here, for as many queries at a time as need little
memory. G groups, M heads, D head width, H x W the map, Q queries, K keys.
"""

from collections.abc import Iterator
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..models.deformable import DeformableAttention
from ..ops import grid, reference
from .geometry import MapGrid

CHUNK = 4_000_000  # logits made at a time; 16 MB, and a few times as much where they are interpolated


class Layer:
    """A deformable layer as it was in a forward, for one image.

    Methods give numpy arrays. A query is a number, 0 to H W - 1, row by row.

    Args:
        name: the name of the attention in its model.
        attention: the module.
        q: the projected queries (H, W, C).
        k: the projected keys (Hk, Wk, C).
        points: where the keys were sampled, (G, Hk, Wk, 2) as (y, x) in [-1, 1].
        map_grid: where the map is in the model's input.
    """

    def __init__(
        self, name: str, attention: DeformableAttention, q: Tensor, k: Tensor, points: Tensor, map_grid: MapGrid
    ):
        self.name = name
        self.module = attention
        self.map_grid = map_grid
        self.map_size = tuple(q.shape[:2])
        self.key_map_size = tuple(k.shape[:2])
        self.heads, self.groups = attention.heads, points.shape[0]
        self.convention = attention.convention
        self.scale = (q.shape[-1] // attention.heads) ** -0.5
        dtype = grid.coordinate_dtype(q)
        self._q, self._points = q, points.to(dtype)
        self.q = q.to(dtype).flatten(0, 1).unflatten(-1, (self.heads, -1)).transpose(0, 1)  # (M, Q, D)
        self.k = k.to(dtype).flatten(0, 1).unflatten(-1, (self.heads, -1)).transpose(0, 1)  # (M, K, D)

    def __repr__(self):
        (H, W), (Hk, Wk) = self.map_size, self.key_map_size
        return f'{self.name}: {H}x{W} queries, {Hk}x{Wk} keys, {self.heads} heads, {self.groups} groups'

    @property
    def queries(self) -> int:
        return self.map_size[0] * self.map_size[1]

    @property
    def keys(self) -> int:
        return self.key_map_size[0] * self.key_map_size[1]

    @property
    def label(self) -> str:
        """The stage and block of a layer in a backbone, both from 1 as papers count them; else its name."""
        parts = self.name.split('.')
        if 'stages' in parts and 'blocks' in parts:
            stage, block = (int(parts[parts.index(part) + 1]) + 1 for part in ('stages', 'blocks'))
            return f'stage {stage}, block {block}'
        return self.name or 'attention'

    def group_of(self, head: int) -> int:
        return head // (self.heads // self.groups)

    # ---- places

    @property
    def points(self) -> np.ndarray:
        """Where the keys were sampled, (G, K, 2) as (y, x) in [-1, 1] of the map.

        Keys that are averages of windows have no points: these are the middles of the windows.
        """
        if self.module.pooled:
            return self.reference[None]
        return self._points.flatten(1, 2).cpu().numpy()

    @property
    def reference(self) -> np.ndarray:
        """Where the keys would be sampled without offsets, (K, 2) as (y, x) in [-1, 1] of the map."""
        height, width = self.key_map_size
        if self.module.pooled:
            windows = [min(self.module.key_stride, n) for n in self.map_size]
            middles = [
                (np.arange(count) * window + (window - 1) / 2) / max(n - 1, 1) * 2 - 1
                for count, window, n in zip((height, width), windows, self.map_size, strict=True)
            ]
            return np.stack(np.meshgrid(*middles, indexing='ij'), axis=-1).reshape(-1, 2)
        return grid.key_grid(height, width, self.convention).flatten(0, 1).numpy()

    @property
    def points_in_input(self) -> np.ndarray:
        """Where the keys were sampled, (G, K, 2) as (x, y) in pixels of the model's input."""
        return self.map_grid.points_to_input(self.points)

    @property
    def reference_in_input(self) -> np.ndarray:
        """Where the keys would be sampled without offsets, (K, 2) as (x, y) in pixels of the model's input."""
        return self.map_grid.points_to_input(self.reference)

    @property
    def offsets_in_input(self) -> np.ndarray:
        """How far the points were moved, (G, K, 2) as (x, y) in pixels of the model's input."""
        return self.points_in_input - self.reference_in_input

    def place_of(self, query: int) -> np.ndarray:
        """The place of a query, (x, y) in pixels of the model's input."""
        row, column = divmod(query, self.map_size[1])
        return self.map_grid.to_input(np.array([column, row], float))

    # ---- attention

    @cached_property
    def _bias(self):
        """What the layer's own position bias adds: a table, logits for all queries, or neither."""
        q, points = self._q[None], self._points.flatten(1, 2)[None]
        with torch.no_grad():
            return self.module.position_bias(q, points, self.key_map_size)

    @property
    def has_bias(self) -> bool:
        """Whether the layer adds a position bias to its logits."""
        return self._bias.table is not None or self._bias.logits is not None

    def _table_bias(self, queries: Tensor, points: Tensor) -> Tensor:
        """The table (M, n, K) at displacements of queries (n,) from points (G, K, 2)."""
        positions = grid.query_grid(*self.map_size, self.convention, self.q.dtype, self.q.device).flatten(0, 1)
        return reference.interpolate_table(self._bias.table.detach(), points[None], positions[queries]).squeeze(0)

    def _bias_rows(self, queries: Tensor) -> Tensor:
        """The position bias (M, n, K) of queries (n,); zero where there is none."""
        bias = self._bias
        rows = self.q.new_zeros(self.heads, len(queries), self.keys)
        if bias.table is not None:
            rows = rows + self._table_bias(queries, self._points.flatten(1, 2))
        if bias.logits is not None:
            # one row, head or key stands for all of them, as the op has it
            logits = bias.logits.expand(1, self.heads, self.queries, self.keys)[0]
            rows = rows + logits[:, queries].to(rows.dtype)
        return rows

    @torch.no_grad()
    def _attention_rows(self, queries: Tensor) -> Tensor:
        logits = (self.q[:, queries] * self.scale) @ self.k.transpose(-2, -1)
        return (logits + self._bias_rows(queries)).softmax(-1)

    def _numbers(self, queries) -> Tensor:
        numbers = torch.atleast_1d(torch.as_tensor(queries, device=self.q.device))
        if len(numbers) and not (int(numbers.min()) >= 0 and int(numbers.max()) < self.queries):
            raise IndexError(f'queries {queries} are not all among the {self.queries} of {self.name}')
        return numbers

    def attention(self, queries) -> np.ndarray:
        """The attention (M, n, K) of n queries, or (M, K) of one: each row sums to 1."""
        rows = self._attention_rows(self._numbers(queries)).cpu().numpy()
        return rows[:, 0] if np.ndim(queries) == 0 else rows

    def _chunks(self) -> Iterator[Tensor]:
        """Yields the attention (M, n, K) of all queries, a few of them at a time."""
        count = max(1, CHUNK // (self.heads * self.keys))
        for first in range(0, self.queries, count):
            yield self._attention_rows(torch.arange(first, min(first + count, self.queries), device=self.q.device))

    @cached_property
    def _sums(self) -> tuple[np.ndarray, np.ndarray]:
        """The sum (M, K) of the attention of all queries, and the sum of its rows divided by their lengths."""
        total = self.q.new_zeros(self.heads, self.keys)
        directions = torch.zeros_like(total)
        for rows in self._chunks():
            total += rows.sum(1)
            directions += (rows / rows.norm(dim=-1, keepdim=True)).sum(1)
        return total.cpu().numpy(), directions.cpu().numpy()

    @property
    def received(self) -> np.ndarray:
        """The attention (M, K) that each key gets from all queries, as a mean: each head's sums to 1."""
        return self._sums[0] / self.queries

    @property
    def similarity(self) -> np.ndarray:
        """How alike the attention of two queries is, (M,): the mean cosine of their rows over all pairs.

        1 says that every query looks at the same keys with the same weights.
        """
        Q = self.queries
        if Q == 1:
            return np.ones(self.heads)
        return ((self._sums[1].astype(float) ** 2).sum(-1) - Q) / (Q * (Q - 1))

    def bias(self, query: int) -> np.ndarray:
        """The position bias (M, K) of a query; zero where the layer adds none to its logits."""
        with torch.no_grad():
            return self._bias_rows(self._numbers(query))[:, 0].cpu().numpy()

    def bias_map(self, query: int) -> np.ndarray | None:
        """The position bias (M, H, W) that a query would have for a key at any pixel of the map.

        It is None where the bias is no table by displacement.
        """
        if self._bias.table is None:
            return None
        rows, columns = (
            torch.linspace(-1, 1, n, dtype=self.q.dtype) if n > 1 else torch.zeros(1) for n in self.map_size
        )
        everywhere = torch.stack(torch.meshgrid(rows, columns, indexing='ij'), -1).to(self.q).flatten(0, 1)
        bias = self._table_bias(self._numbers(query), everywhere.expand(self.groups, -1, -1))
        return bias[:, 0].unflatten(-1, self.map_size).cpu().numpy()

    def by_group(self, weights: np.ndarray) -> np.ndarray:
        """The weights (G, K) of all points, as the mean over the heads of a group, which share them."""
        return weights.reshape(self.groups, -1, self.keys).mean(1)

    def strongest(self, weights: np.ndarray, count: int) -> list[tuple[int, int, float]]:
        """The points with the largest weights, of (M, K), as (group, key, weight), the largest first."""
        by_group = self.by_group(weights)
        order = np.argsort(by_group, axis=None, kind='stable')[::-1][:count]
        return [(int(i // self.keys), int(i % self.keys), float(by_group.flat[i])) for i in order]
