# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Attention that stays near: windows, neighborhoods; and to a pooled map. All map (B, H, W, C) to the same."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..ops.backends import check_backend
from ..ops.layout import compiling, crop_last, exporting, packed, pad_last, pad_to_multiple, round_up
from ..ops.reference import attend
from .layers import Linear, conv_last


def attend_in_cache(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Fused attention of windows (B, rows, columns, M, w*w, D), the bias (M, w*w, w*w) or one for each window."""
    windows = q.shape[:3]
    if bias.ndim == 3:
        q, k, v = (x.flatten(0, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, bias.to(q.dtype).unsqueeze(0)).unflatten(0, windows)
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    bias = bias.to(q.dtype)
    rows = [F.scaled_dot_product_attention(q[i], k[i], v[i], bias[i % len(bias)]) for i in range(len(q))]
    return torch.stack(rows).unflatten(0, windows[:2])


class WindowAttention(nn.Module):
    """Attention within windows of a fixed size, shifted by half a window or not, with a relative position bias."""

    def __init__(self, dim, heads, *, window_size=7, shifted=False, attn_drop=0.0, proj_drop=0.0, backend='auto'):
        super().__init__()
        check_backend(backend)
        self.heads = heads
        self.backend = backend
        self.window_size = window_size
        self.shift = (window_size + 1) // 2 if shifted else 0  # 4 of 7, not Swin's 3
        self.attn_drop = attn_drop
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.01)
        self.qkv = Linear(dim, 3 * dim, backend=backend)
        self.proj_out = Linear(dim, dim, backend=backend)
        self.proj_drop = nn.Dropout(proj_drop)
        i = torch.arange(window_size)
        along = i[:, None] - i + window_size - 1  # (w, w)
        index = along[:, None, :, None] * (2 * window_size - 1) + along[None, :, None]  # (w, w, w, w)
        self.register_buffer('bias_index', index.flatten(0, 1).flatten(1), persistent=False)

    def position_bias(self) -> Tensor:
        """(M, w*w, w*w)."""
        return self.relative_position_bias_table[self.bias_index].permute(2, 0, 1)

    def mask(self, height: int, width: int, rows: int, columns: int) -> Tensor:
        """-100 where the roll of a padded map brought two regions into one window: (rows, columns, 1, w*w, w*w)."""
        w, device = self.window_size, self.bias_index.device

        def region(n, windows):
            i = torch.arange(windows * w, device=device)
            return (i >= n - w).long() + (i >= n - self.shift).long()

        regions = region(height, rows)[:, None] * 3 + region(width, columns)
        regions = packed(regions.view(rows, w, columns, w).transpose(1, 2)).view(rows, columns, 1, w * w)
        return -100.0 * (regions.unsqueeze(-1) != regions.unsqueeze(-2))

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        M, w = self.heads, self.window_size
        height, width = round_up(H, w), round_up(W, w)
        x = pad_last(x, height, width)
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        rows, columns = height // w, width // w
        if exporting():  # two windows at least along an axis, so that no size may be 1
            rows, columns = torch.sym_max(rows, 2), torch.sym_max(columns, 2)
            x = pad_last(x, rows * w, columns * w)
        x = packed(x.view(B, rows, w, columns, w, C).transpose(2, 3)).view(B, rows, columns, w * w, C)
        q, k, v = (
            self.qkv(x).unflatten(-1, (3, M, C // M)).permute(4, 0, 1, 2, 5, 3, 6)
        )  # each (B, rows, columns, M, w*w, D)
        bias = self.position_bias()
        if self.shift:
            bias = bias + self.mask(height, width, rows, columns)
        dropout = self.attn_drop if self.training else 0.0
        if dropout or self.backend == 'reference' or torch.is_grad_enabled() or compiling() or x.device.type != 'cpu':
            x = attend((q * (C // M) ** -0.5) @ k.transpose(-2, -1) + bias, v, dropout)
        else:
            x = attend_in_cache(q, k, v, bias)
        x = x.transpose(4, 3).reshape(B, rows, columns, w, w, C).transpose(2, 3)
        x = packed(x).view(B, rows * w, columns * w, C)
        if self.shift:
            x = crop_last(x, height, width).roll((self.shift, self.shift), (1, 2))
        return self.proj_drop(self.proj_out(crop_last(x, H, W)))


class NeighborhoodAttention(nn.Module):
    """Attention to the pixels around each pixel, with a relative position bias."""

    def __init__(self, dim, heads, *, kernel_size=7, attn_drop=0.0, proj_drop=0.0, backend='auto'):
        super().__init__()
        check_backend(backend)
        self.heads = heads
        self.kernel_size = kernel_size
        self.attn_drop = attn_drop
        self.backend = backend
        side = 2 * kernel_size - 1
        self.neighborhood_bias_table = nn.Parameter(torch.empty(heads, side, side))
        nn.init.trunc_normal_(self.neighborhood_bias_table, std=0.02)
        self.qkv = Linear(dim, 3 * dim, backend=backend)
        self.proj_out = Linear(dim, dim, backend=backend)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        x = pad_last(x, torch.sym_max(H, self.kernel_size), torch.sym_max(W, self.kernel_size))
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 4, 1, 2, 5)  # each (B, M, H, W, D)
        x = ops.neighborhood_attention(
            q,
            k,
            v,
            self.neighborhood_bias_table,
            kernel_size=self.kernel_size,
            dropout=self.attn_drop if self.training else 0.0,
            backend=self.backend,
        )
        x = packed(x.permute(0, 2, 3, 1, 4)).flatten(3)
        return self.proj_drop(self.proj_out(crop_last(x, H, W)))


class PyramidAttention(nn.Module):
    """Attention of all pixels to a map reduced by a strided convolution."""

    def __init__(self, dim, heads, *, reduction=1, attn_drop=0.0, proj_drop=0.0, backend='auto'):
        super().__init__()
        self.heads = heads
        self.reduction = reduction
        self.attn_drop = attn_drop
        self.proj_q = Linear(dim, dim, backend=backend)
        if reduction > 1:
            self.reduce = nn.Conv2d(dim, dim, reduction, stride=reduction)
            self.reduce_norm = nn.LayerNorm(dim)
        self.proj_kv = Linear(dim, 2 * dim, backend=backend)
        self.proj_out = Linear(dim, dim, backend=backend)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[1:3]
        q = self.proj_q(x).flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, M, Q, D)
        if self.reduction > 1:
            x = self.reduce_norm(conv_last(self.reduce, pad_to_multiple(x, self.reduction)))
        k, v = self.proj_kv(x).flatten(1, 2).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        x = attend(logits, v, self.attn_drop if self.training else 0.0)  # (B, M, Q, D)
        return self.proj_drop(self.proj_out(x.transpose(1, 2).flatten(2).unflatten(1, (H, W))))
