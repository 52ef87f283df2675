# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Deformable attention: all queries share a few sampling points, moved by what the image shows."""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import ops
from ..arch import Site, StageSpec
from ..convert import rename_old_keys
from ..ops import grid
from ..ops.backends import DEFORMABLE, SAMPLING, for_op
from ..ops.layout import contiguous, pad_to_least
from .backend import set_backend
from .layers import Projection, conv_last
from .position_bias import POSITION_BIAS, CoordinateLinear


class CoordinateNorm(nn.LayerNorm):
    """A norm that computes in the dtype of its input and not of its weights, since coordinates come from it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class OffsetNetwork(nn.Module):
    """The network that makes offsets (B, G, Hk, Wk, 2) from queries (B, H, W, G c), the same for all groups."""

    def __init__(self, dim: int, kernel_size: int, stride: int, padding: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, kernel_size, stride=stride, padding=padding, groups=dim)
        self.norm = CoordinateNorm(dim)
        self.proj = CoordinateLinear(dim, 2, bias=False)

    def key_map_size(self, height: int, width: int) -> tuple[int, int]:
        """The size of the map of keys for a map of queries."""
        k, r, p = self.conv.kernel_size[0], self.conv.stride[0], self.conv.padding[0]
        return tuple(torch.sym_max((n + 2 * p - k) // r + 1, 1) for n in (height, width))

    def forward(self, q: Tensor) -> Tensor:
        k, p, dim = self.conv.kernel_size[0], self.conv.padding[0], self.conv.in_channels
        if p < k // 2:  # without padding, a map smaller than the kernel gets zeros and has one key
            q = pad_to_least(q, k)
        B = q.shape[0]
        x = contiguous(q.unflatten(-1, (-1, dim)).movedim(3, 1)).flatten(0, 1)  # (B G, H, W, c)
        x = conv_last(self.conv, x)  # (B G, Hk, Wk, c)
        with grid.full_precision(q):
            x = self.proj(F.gelu(self.norm(x.to(grid.coordinate_dtype(x)))))
        return x.unflatten(0, (B, -1))


class DeformableAttention(nn.Module):
    """Deformable multi-head attention of a channels-last map. It maps (B, H, W, C) to the same.

    Args:
        map_size: (H, W) at the training resolution, a number if square. It sets the size of the bias table. Maps of
            any other size work too.
        groups: how many sets of points there are. The heads of a group share one.
        key_stride: queries per key along an axis.
        range_factor: how many cells of the key map offsets can reach. Negative is any distance.
        offsets: False keeps the points on the grid in 'dat'. In 'datpp' it averages the map over the key stride,
            without points and without a position bias.
        position_bias: 'relative' (an interpolated table), 'depthwise' (a convolution of the queries), 'fixed' (a table
            by query and key), 'log' (an MLP of the displacement), 'none', or a form that was registered.
        convention: 'datpp' or 'dat', the coordinates of ops/grid.py.
        backend: a name from ops/backends.py. Ops without a backend of that name use 'auto'.
    """

    backend = 'auto'

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
        if position_bias not in POSITION_BIAS:
            raise ValueError(f'position_bias={position_bias!r} is not one of {", ".join(POSITION_BIAS)}')
        grid.check_convention(convention)
        self.heads = heads
        self.groups = groups
        self.map_size = (map_size, map_size) if isinstance(map_size, int) else tuple(map_size)
        self.key_stride = key_stride
        self.range_factor = range_factor
        self.offsets = offsets
        self.convention = convention
        self.attn_drop = attn_drop
        self.pooled = not offsets and convention == 'datpp'  # keys are averages, without points and bias
        if self.pooled and position_bias != 'none':
            warnings.warn(
                f"position_bias={position_bias!r} is not used: offsets=False with 'datpp' averages the keys, and they "
                "have no points; position_bias='none' says so",
                stacklevel=2,
            )
            position_bias = 'none'

        padding = 0 if convention == 'datpp' and offset_kernel == key_stride else offset_kernel // 2
        offset_net = OffsetNetwork(dim // groups, offset_kernel, key_stride, padding)
        self.position_bias = POSITION_BIAS[position_bias](
            dim=dim,
            heads=heads,
            groups=groups,
            map_size=self.map_size,
            key_map_size=offset_net.key_map_size(*self.map_size),
            convention=convention,
        )
        self.offset_net = offset_net.requires_grad_(offsets)
        self.proj_q = Projection(dim, dim)
        self.proj_k = Projection(dim, dim)
        self.proj_v = Projection(dim, dim)
        self.proj_out = Projection(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self._register_load_state_dict_pre_hook(rename_old_keys)
        set_backend(self, backend)

    @classmethod
    def from_spec(cls, spec: StageSpec, site: Site) -> nn.Module:
        return cls(
            spec.dim,
            spec.heads,
            map_size=site.map_size,
            groups=spec.groups,
            key_stride=spec.key_stride,
            offset_kernel=spec.offset_kernel,
            range_factor=spec.range_factor,
            offsets=spec.offsets,
            position_bias=spec.position_bias,
            convention=site.convention,
            attn_drop=site.attn_drop,
            proj_drop=site.proj_drop,
        )

    def place_keys(self, q: Tensor) -> Tensor:
        """The points (B, G, Hk, Wk, 2) of the keys, in float32, for the projected queries (B, H, W, C)."""
        if self.offsets:
            return grid.move(self.offset_net(q), self.convention, self.range_factor)
        height, width = self.offset_net.key_map_size(*q.shape[1:3])
        points = grid.key_grid(height, width, self.convention, grid.coordinate_dtype(q), q.device)
        return points.expand(q.shape[0], self.groups, -1, -1, -1)

    def points(self, x: Tensor) -> Tensor:
        """The points (B, G, Hk, Wk, 2), as (y, x), where the keys of a map (B, H, W, C) are sampled."""
        return self.place_keys(self.proj_q(x))

    def sample_keys(self, x: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        """The features of the keys (B, Hk, Wk, C), and their points (B, G, Hk, Wk, 2)."""
        if self.pooled:
            window = tuple(torch.sym_min(self.key_stride, n) for n in x.shape[1:3])
            keys = F.avg_pool2d(x.permute(0, 3, 1, 2), window).permute(0, 2, 3, 1)
            return keys, q.new_zeros(*keys.shape[:3], 2).unsqueeze(1)
        points = self.place_keys(q)
        return ops.sample_features(x, points, backend=for_op(self.backend, SAMPLING)), points

    def forward(self, x: Tensor) -> Tensor:
        q = self.proj_q(x)
        keys, points = self.sample_keys(x, q)
        k, v = (
            proj(keys).flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, M, K, D)
            for proj in (self.proj_k, self.proj_v)
        )
        points = contiguous(points).flatten(2, 3)  # (B, G, K, 2)
        bias = self.position_bias(q, points, keys.shape[1:3])
        x = ops.deformable_attention(
            q.unflatten(-1, (self.heads, -1)).permute(0, 3, 1, 2, 4),  # (B, M, H, W, D)
            k,
            v,
            points,
            bias.table,
            bias=bias.logits,
            convention=self.convention,
            dropout=self.attn_drop if self.training else 0.0,
            backend=for_op(self.backend, DEFORMABLE),
        )
        x = contiguous(x.permute(0, 2, 3, 1, 4)).flatten(3)  # (B, H, W, C)
        if bias.output is not None:
            x = x + bias.output
        return self.proj_drop(self.proj_out(x))
