# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Deformable attention that makes the whole position bias first, from rows of the table. It is for middle-sized maps.

Along an axis, the queries stand in the table of a key at even steps: t(i) = t(0) + i step. So a row of queries needs
only a window of each row of the table. All windows of all rows are laid out, and `embedding_bag` fetches and blends
them. Along y it blends two rows. Along x it blends two windows where the step is 1, as it is at the training resolution
of 'datpp'. Where it is not, a product with hat(t(j) - x) interpolates along x.

B batch, G groups, M heads, m of them in a group, D head width, H x W the map, K keys, Y x X the table.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from . import grid, reference
from .separable import hat, slope
from .tracing import exporting, needs_gradient

LOGITS = 4 << 20  # at most so many at once in inference, unless one image has more


class Hat(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return hat(u)

    @staticmethod
    def backward(ctx, grad):
        return slope(*ctx.saved_tensors).mul_(grad)


def is_one(step: float) -> bool:
    """Whether queries stand one cell of the table apart, as they do at the training resolution of 'datpp'."""
    return abs(step - 1) < 1e-9


def interpolate_table(table: Tensor, points: Tensor, height: int, width: int, convention: str) -> Tensor:
    """The bias (B, M, Q, K): the table (M, 2T_h-1, 2T_w-1) at displacements of queries from points (B, G, K, 2)."""
    B, G, K, _ = points.shape
    dtype = grid.coordinate_dtype(table, points)
    Y, X = table.shape[1:]
    step_y, step_x = grid.table_steps((height, width), (Y, X), convention)
    first = grid.table_coordinates(points.to(dtype), (height, width), (Y, X), convention)
    y = first[..., 0, None] + torch.arange(height, dtype=dtype, device=points.device) * step_y  # (B, G, K, H)
    x = first[..., 1, None]
    blends = is_one(step_x)
    window = width if blends else int((width - 1) * step_x) + 3

    table = F.pad(table.to(dtype).unflatten(0, (G, -1)), (window, window, 1, 1))
    rows = table.unfold(3, window, 1).permute(0, 2, 3, 1, 4)  # (G, Y + 2, X + window + 1, m, window)
    near_y, near_x = y.detach().floor(), x.detach().floor()
    y_taps = [(near_y, 1 - (y - near_y)), (near_y + 1, y - near_y)]
    x_taps = [(near_x, 1 - (x - near_x)), (near_x + 1, x - near_x)] if blends else [(near_x, torch.ones_like(x))]
    group = torch.arange(G, device=points.device).view(-1, 1, 1)
    at, weights = [], []
    for i, weight_y in y_taps:
        i = (group * (Y + 2) + (i.long() + 1).clamp_(0, Y + 1)) * (X + window + 1)
        for j, weight_x in x_taps:
            at.append(i + (j.long() + window).clamp_(0, X + window))
            weights.append(weight_y * weight_x)
    at, weights = (torch.stack(taps, -1).flatten(0, -2) for taps in (at, weights))
    bias = F.embedding_bag(at, rows.flatten(3).flatten(0, 2), per_sample_weights=weights, mode='sum')
    if not blends:
        queries = torch.arange(width, dtype=dtype, device=points.device) * step_x
        cells = torch.arange(window, dtype=dtype, device=points.device).unsqueeze(-1)
        hats = Hat.apply((x - near_x).unsqueeze(-1) + (queries - cells))  # (B, G, K, window, W)
        bias = bias.view(B * G * K, -1, window) @ hats.flatten(0, 2)
    bias = bias.view(B, G, K, height, -1, width)
    return bias.permute(0, 1, 4, 3, 5, 2).reshape(B, -1, height * width, K)


def attend_at_once(q, k, v, points, table, bias, convention, scale, dropout, fused):
    H, W = q.shape[2:4]
    q = q.flatten(2, 3)
    if table is not None:
        with grid.full_precision(q):
            from_table = interpolate_table(table, points, H, W, convention)
        bias = from_table if bias is None else from_table + bias
    if fused:
        bias = None if bias is None else bias.to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, bias, scale=scale)
    else:
        logits = (q * scale) @ k.transpose(-2, -1)
        out = reference.average_values(logits if bias is None else logits + bias, v, dropout)
    return out.unflatten(2, (H, W))


def deformable_attention(q, k, v, points, table, *, bias, convention, scale, dropout):
    options = convention, scale, dropout
    keeps = dropout > 0 or needs_gradient(q, k, v, points, table, bias)
    if keeps or bias is not None:
        return attend_at_once(q, k, v, points, table, bias, *options, fused=not keeps)
    images = max(1, LOGITS // math.prod((*q.shape[1:4], k.shape[2])))
    parts = zip(*(x.split(images) for x in (q, k, v, points)), strict=True)
    return torch.cat([attend_at_once(*part, table, None, *options, fused=True) for part in parts])


def why_not(**call) -> str | None:
    if exporting():
        return 'its windows are for one map size, and an exported graph takes any'
    return None


def is_faster(q, k, v, points, table, bias, convention, **call) -> bool:
    """Whether it is faster, as measured by tools/measure_backends.py.

    It is on maps of middle size in a batch. In training it is only where the step is 1.
    """
    (H, W), image = q.shape[2:4], math.prod((*q.shape[1:4], k.shape[2]))
    if needs_gradient(q, k, v, points, table, bias):
        steps = [0] if table is None else grid.table_steps((H, W), table.shape[1:], convention)
        return is_one(steps[-1]) and W >= 28 and len(q) * image >= 1 << 20
    return W >= 14 and image <= LOGITS and len(q) * image >= 1 << 19
