# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Deformable attention: all queries share a few sampling points, moved by what the image shows."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..arch import POSITION_BIASES
from ..ops import grid
from ..ops.backends import SAMPLING, check_backend, for_op
from ..ops.layout import packed, pad_last
from .layers import Linear, conv_last


class OffsetNetwork(nn.Module):
    """Offsets from the queries, one network for all groups: (B, H, W, G c) to (B, G, Hk, Wk, 2)."""

    def __init__(self, dim: int, kernel_size: int, stride: int, padding: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel_size, stride=stride, padding=padding, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.proj = nn.Linear(dim, 2, bias=False)

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """Of the keys."""
        k, r, p = self.conv.kernel_size[0], self.conv.stride[0], self.conv.padding[0]
        return tuple(torch.sym_max((n + 2 * p - k) // r + 1, 1) for n in (height, width))

    def forward(self, q: Tensor) -> Tensor:
        conv, dim = self.conv, self.conv.in_channels
        k, p = conv.kernel_size[0], conv.padding[0]
        if p < k // 2:  # without padding, a map smaller than the kernel gets zeros: one key
            q = pad_last(q, torch.sym_max(q.shape[1], k), torch.sym_max(q.shape[2], k))
        G = q.shape[-1] // dim
        x = F.conv2d(
            q.permute(0, 3, 1, 2),
            conv.weight.repeat(G, 1, 1, 1),
            conv.bias.repeat(G),
            conv.stride,
            p,
            groups=G * dim,
        )
        with grid.full_precision(q):
            dtype = grid.coordinate_dtype(x)
            x = x.permute(0, 2, 3, 1).unflatten(-1, (G, dim)).to(dtype)  # (B, Hk, Wk, G, c)
            norm = self.norm
            x = F.gelu(F.layer_norm(x, norm.normalized_shape, norm.weight.to(dtype), norm.bias.to(dtype), norm.eps))
            return F.linear(x, self.proj.weight.to(dtype)).permute(0, 3, 1, 2, 4)


class DeformableAttention(nn.Module):
    """Deformable multi-head attention of a channels-last map: (B, H, W, C) to the same.

    map_size: (H, W) at the training resolution, a number if square; it sets the size of the bias table, and any
    other map works. key_stride: queries per key along an axis. range_factor: offsets reach this many cells of the key
    map, any distance if negative. position_bias: 'relative' (interpolated table), 'depthwise' (convolution of the
    queries), 'fixed' (a table by query and key), 'log' (an MLP of the displacement) or 'none'. convention: 'datpp' or
    'dat', the coordinates of ops/grid.py. Without offsets, 'dat' puts the points on the grid; 'datpp' averages over
    the key stride, with no position bias.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        map_size: int | tuple[int, int],
        groups: int = 1,
        key_stride: int = 1,
        offset_kernel: int = 5,
        range_factor: float = -1,
        offsets: bool = True,
        position_bias: str = 'relative',
        convention: str = 'datpp',
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        backend: str = 'auto',
    ):
        super().__init__()
        if dim % heads:
            raise ValueError(f'dim={dim} is not a multiple of heads={heads}')
        if heads % groups:
            raise ValueError(f'heads={heads} is not a multiple of groups={groups}')
        if position_bias not in POSITION_BIASES:
            raise ValueError(f'position_bias={position_bias!r} is not one of {", ".join(POSITION_BIASES)}')
        grid.check_convention(convention)
        check_backend(backend)
        self.heads = heads
        self.groups = groups
        self.map_size = (map_size, map_size) if isinstance(map_size, int) else tuple(map_size)
        self.key_stride = key_stride
        self.range_factor = range_factor
        self.offsets = offsets
        self.convention = convention
        self.attn_drop = attn_drop
        self.backend = backend
        self.pooled = not offsets and convention == 'datpp'  # keys by averaging: no points, no bias
        self.position_bias = 'none' if self.pooled else position_bias

        padding = 0 if convention == 'datpp' and offset_kernel == key_stride else offset_kernel // 2
        self.offset_net = OffsetNetwork(dim // groups, offset_kernel, key_stride, padding)
        if not offsets:
            self.offset_net.requires_grad_(False)
        self.proj_q = Linear(dim, dim, backend=backend)
        self.proj_k = Linear(dim, dim, backend=backend)
        self.proj_v = Linear(dim, dim, backend=backend)
        self.proj_out = Linear(dim, dim, backend=backend)
        self.proj_drop = nn.Dropout(proj_drop)

        T_h, T_w = self.map_size
        if self.position_bias == 'relative':
            self.position_bias_table = nn.Parameter(torch.empty(heads, 2 * T_h - 1, 2 * T_w - 1))
        elif self.position_bias == 'fixed':
            self.position_bias_table = nn.Parameter(
                torch.empty(heads, T_h * T_w, math.prod(self.offset_net.map_size(T_h, T_w)))
            )
        elif self.position_bias == 'depthwise':
            self.position_bias_conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        elif self.position_bias == 'log':
            self.position_bias_mlp = nn.Sequential(
                nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, heads // groups, bias=False)
            )
        if hasattr(self, 'position_bias_table'):
            nn.init.trunc_normal_(self.position_bias_table, std=0.01)

    def points_of(self, q: Tensor) -> Tensor:
        """Where the keys are sampled, from the projected queries (B, H, W, C): (B, G, Hk, Wk, 2) in float32."""
        if self.offsets:
            return grid.move(self.offset_net(q), self.convention, self.range_factor)
        height, width = self.offset_net.map_size(*q.shape[1:3])
        points = grid.key_grid(height, width, self.convention, grid.coordinate_dtype(q), q.device)
        return points.expand(q.shape[0], self.groups, -1, -1, -1)

    def points(self, x: Tensor) -> Tensor:
        """Where the keys of a map (B, H, W, C) are sampled: (B, G, Hk, Wk, 2), (y, x)."""
        return self.points_of(self.proj_q(x))

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        q = self.proj_q(x)
        if self.pooled:
            window = tuple(torch.sym_min(self.key_stride, n) for n in (H, W))
            keys = F.avg_pool2d(x.permute(0, 3, 1, 2), window).permute(0, 2, 3, 1)
            points = q.new_zeros(B, 1, keys.shape[1] * keys.shape[2], 2)
            map_size = keys.shape[1:3]
        else:
            points = self.points_of(q)
            keys = ops.sample_features(x, points, backend=for_op(self.backend, SAMPLING))
            map_size = points.shape[2:4]
            points = packed(points).flatten(2, 3)
        k, v = (
            proj(keys).flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, M, K, D)
            for proj in (self.proj_k, self.proj_v)
        )
        x = ops.deformable_attention(
            q.unflatten(-1, (self.heads, -1)).permute(0, 3, 1, 2, 4),  # (B, M, H, W, D)
            k,
            v,
            points,
            self.position_bias_table if self.position_bias == 'relative' else None,
            bias=self.dense_bias(points, (H, W), map_size),
            convention=self.convention,
            dropout=self.attn_drop if self.training else 0.0,
            backend=self.backend,
        )
        x = packed(x.permute(0, 2, 3, 1, 4)).flatten(3)
        if self.position_bias == 'depthwise':
            x = x + conv_last(self.position_bias_conv, q)
        return self.proj_drop(self.proj_out(x))

    def dense_bias(self, points: Tensor, map_size, key_map_size) -> Tensor | None:
        """The biases that are there for each query and key: 'fixed' (M, Q, K) and 'log' (B, M, Q, K)."""
        if self.position_bias == 'fixed':
            return self._fixed_bias(map_size, key_map_size)
        if self.position_bias == 'log':
            return self._log_bias(points, map_size)
        return None

    def _fixed_bias(self, map_size, key_map_size):
        def resize(table, old, new):  # of the last axis, a flattened map
            if tuple(old) == tuple(new):
                return table
            table = table.unflatten(-1, old)
            return F.interpolate(table, size=tuple(new), mode='bilinear', align_corners=True).flatten(-2)

        table = resize(self.position_bias_table, self.offset_net.map_size(*self.map_size), key_map_size)
        return resize(table.transpose(-2, -1), self.map_size, map_size).transpose(-2, -1)

    def _log_bias(self, points, map_size):
        queries = grid.query_grid(*map_size, self.convention, points.dtype, points.device).flatten(0, 1)
        displacement = (queries[:, None] - points[:, :, None]) * 4  # (B, G, Q, K, 2)
        displacement = displacement.sign() * (displacement.abs() + 1).log2() / math.log2(8)
        with grid.full_precision(points):
            mlp = self.position_bias_mlp
            hidden = F.linear(displacement, mlp[0].weight.to(points.dtype), mlp[0].bias.to(points.dtype)).relu()
            bias = F.linear(hidden, mlp[2].weight.to(points.dtype))
        return bias.permute(0, 1, 4, 2, 3).flatten(1, 2)
