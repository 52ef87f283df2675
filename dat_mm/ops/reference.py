# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The ops in plain PyTorch. They are the definition that every other backend is tested against.

B batch, G groups, M heads, D head width, H x W the map, Q = H W queries, K keys.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import grid
from .layout import contiguous
from .remaking import cheaply

ACTIVATIONS = ('none', 'gelu')


def activate(x: Tensor, activation: str) -> Tensor:
    return cheaply(F.gelu, x) if activation == 'gelu' else x


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, activation: str) -> Tensor:
    return activate(F.linear(x, weight, bias), activation)


def add_depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    around = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=weight.shape[-1] // 2, groups=len(weight))
    return x + around.permute(0, 2, 3, 1)


def feed_forward(x: Tensor, weight1, bias1, weight2, bias2, conv_weight, conv_bias) -> Tensor:
    x = F.linear(x, weight1, bias1)
    if conv_weight is not None:
        x = add_depthwise(x, conv_weight, conv_bias)
    return F.linear(cheaply(F.gelu, x), weight2, bias2)


def average_values(logits: Tensor, v: Tensor, dropout: float = 0.0) -> Tensor:
    """The sum of v, weighted by the softmax of the logits over their last axis. The softmax is in float32 at least."""
    weights = logits.to(grid.coordinate_dtype(logits)).softmax(-1)
    return F.dropout(weights, dropout).to(v.dtype) @ v


def interpolate_table(table: Tensor, points: Tensor, queries: Tensor) -> Tensor:
    """The bias (B, M, Q, K) of a table (M, 2T_h-1, 2T_w-1), for queries (Q, 2) and points (B, G, K, 2)."""
    dtype = grid.coordinate_dtype(table, points)
    B, G, K, _ = points.shape
    displacement = (queries[:, None] - points[:, :, None]) / 2  # (B, G, Q, K, 2)
    tables = table.unflatten(0, (G, -1)).expand(B, -1, -1, -1, -1)  # head m is of group m // (M / G)
    bias = grid.sample(tables.flatten(0, 1).to(dtype), displacement.flatten(0, 1))  # (B G, M/G, Q, K)
    return bias.unflatten(0, (B, G)).flatten(1, 2)


def deformable_attention(q, k, v, points, table, *, bias, convention, scale, dropout):
    H, W = q.shape[2:4]
    logits = (q.flatten(2, 3) * scale) @ k.transpose(-2, -1)  # (B, M, Q, K)
    if table is not None:
        dtype = grid.coordinate_dtype(table, points)
        queries = grid.query_grid(H, W, convention, dtype, points.device).flatten(0, 1)
        logits = logits + interpolate_table(table, points, queries)
    if bias is not None:
        logits = logits + bias
    return average_values(logits, v, dropout).unflatten(2, (H, W))


def sample_features(x: Tensor, points: Tensor) -> Tensor:
    G = points.shape[1]
    grouped = x.unflatten(-1, (G, -1)).permute(0, 3, 4, 1, 2).flatten(0, 1)  # (B G, C/G, H, W)
    sampled = grid.sample(grouped, points.flatten(0, 1))
    return contiguous(sampled.unflatten(0, (-1, G)).permute(0, 3, 4, 1, 2)).flatten(3)


def neighbors(n: int, kernel_size: int, device=None) -> tuple[Tensor, Tensor]:
    """The positions that each query of an axis sees, and their places in the table, both (n, kernel_size)."""
    queries = torch.arange(n, device=device)
    first = (queries - kernel_size // 2).clamp(min=0).clamp(max=n - kernel_size)
    seen = first[:, None] + torch.arange(kernel_size, device=device)
    return seen, seen - queries[:, None] + kernel_size - 1


def neighborhood_attention(q, k, v, table, *, kernel_size, scale, dropout):
    H, W = q.shape[2:4]
    rows, table_rows = neighbors(H, kernel_size, q.device)
    columns, table_columns = neighbors(W, kernel_size, q.device)
    seen = (rows[:, None, :, None] * W + columns[None, :, None]).flatten(0, 1).flatten(1)  # (Q, kernel_size^2)
    q, k, v = q.flatten(2, 3).unsqueeze(-2), k.flatten(2, 3)[:, :, seen], v.flatten(2, 3)[:, :, seen]
    logits = (q * scale) @ k.transpose(-2, -1)  # (B, M, Q, 1, kernel_size^2)
    if table is not None:
        bias = table[
            :, table_rows[:, None, :, None], table_columns[None, :, None]
        ]  # (M, H, W, kernel_size, kernel_size)
        logits = logits + bias.flatten(1, 2).flatten(2).unsqueeze(-2)
    return average_values(logits, v, dropout).squeeze(-2).unflatten(2, (H, W))


def window_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None, *, dropout: float) -> Tensor:
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias  # (B, rows, columns, M, N, N)
    return average_values(logits if mask is None else logits + mask.unsqueeze(2), v, dropout)
