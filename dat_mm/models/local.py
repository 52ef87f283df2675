# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Attention to near pixels, in windows and in neighborhoods. Each class maps (B, H, W, C) to the same."""

import math

import torch
from torch import Tensor, nn

from .. import ops
from ..arch import Site, StageSpec
from ..ops import windows
from ..ops.backends import NEIGHBORHOOD, WINDOW, for_op
from ..ops.layout import contiguous, crop_last, pad_to_least
from ..ops.remaking import cheaply
from .backend import set_backend
from .layers import Projection
from .position_bias import bicubic


class WindowAttention(nn.Module):
    """Attention within windows of a fixed size, shifted by half a window or not, with a relative position bias."""

    backend = 'auto'

    def __init__(self, dim, heads, *, window_size=7, shifted=False, attn_drop=0.0, proj_drop=0.0, backend='auto'):
        super().__init__()
        self.heads = heads
        self.window_size = window_size
        self.shift = (window_size + 1) // 2 if shifted else 0  # 4 for windows of 7, where Swin has 3
        self.attn_drop = attn_drop
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window_size - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.01)
        self.qkv = Projection(dim, 3 * dim)
        self.proj_out = Projection(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        i = torch.arange(window_size)
        along = i[:, None] - i + window_size - 1  # (w, w)
        index = along[:, None, :, None] * (2 * window_size - 1) + along[None, :, None]  # (w, w, w, w)
        self.register_buffer('bias_index', index.flatten(0, 1).flatten(1), persistent=False)
        set_backend(self, backend)

    @classmethod
    def from_spec(cls, spec: StageSpec, site: Site) -> nn.Module:
        drops = dict(attn_drop=site.attn_drop, proj_drop=site.proj_drop)
        return cls(spec.dim, spec.heads, window_size=spec.window_size, **drops)

    def resized(self, name: str, value: Tensor) -> Tensor:
        """A bias table ((2w-1)^2, M) for windows of another size, resized to the windows here."""
        if value.ndim != 2 or value.shape[1] != self.heads:
            return value
        old, new = math.isqrt(value.shape[0]), 2 * self.window_size - 1
        return bicubic(value.T.unflatten(1, (old, old)), (new, new)).flatten(1).T.contiguous()

    def forward(self, x: Tensor) -> Tensor:
        H, W, C = x.shape[1:]
        x = cheaply(lambda x: windows.split(x, self.window_size, self.shift), x)  # (B, rows, columns, N, C)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(4, 0, 1, 2, 5, 3, 6)
        mask = None
        if self.shift:
            mask = windows.mask(H, W, *x.shape[1:3], self.window_size, self.shift, x.device)
        x = ops.window_attention(  # each of q, k, v (B, rows, columns, M, N, D)
            q,
            k,
            v,
            self.relative_position_bias_table[self.bias_index].permute(2, 0, 1),  # (M, N, N)
            mask,
            dropout=self.attn_drop if self.training else 0.0,
            backend=for_op(self.backend, WINDOW),
        )
        x = windows.join(x.transpose(4, 3).flatten(4), H, W, self.window_size, self.shift)
        return self.proj_drop(self.proj_out(x))


class ShiftedWindowAttention(WindowAttention):
    """Attention within windows that are shifted by half a window."""

    def __init__(self, dim, heads, **options):
        super().__init__(dim, heads, shifted=True, **options)


class NeighborhoodAttention(nn.Module):
    """Attention to the pixels around each pixel, with a relative position bias."""

    backend = 'auto'

    def __init__(self, dim, heads, *, kernel_size=7, attn_drop=0.0, proj_drop=0.0, backend='auto'):
        super().__init__()
        self.heads = heads
        self.kernel_size = kernel_size
        self.attn_drop = attn_drop
        side = 2 * kernel_size - 1
        self.neighborhood_bias_table = nn.Parameter(torch.empty(heads, side, side))
        nn.init.trunc_normal_(self.neighborhood_bias_table, std=0.02)
        self.qkv = Projection(dim, 3 * dim)
        self.proj_out = Projection(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        set_backend(self, backend)

    @classmethod
    def from_spec(cls, spec: StageSpec, site: Site) -> nn.Module:
        drops = dict(attn_drop=site.attn_drop, proj_drop=site.proj_drop)
        return cls(spec.dim, spec.heads, kernel_size=spec.window_size, **drops)

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[1:3]
        x = pad_to_least(x, self.kernel_size)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(3, 0, 4, 1, 2, 5)  # each (B, M, H, W, D)
        x = ops.neighborhood_attention(
            q,
            k,
            v,
            self.neighborhood_bias_table,
            kernel_size=self.kernel_size,
            dropout=self.attn_drop if self.training else 0.0,
            backend=for_op(self.backend, NEIGHBORHOOD),
        )
        x = contiguous(x.permute(0, 2, 3, 1, 4)).flatten(3)
        return self.proj_drop(self.proj_out(crop_last(x, H, W)))
