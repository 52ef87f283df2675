# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Attention of all pixels to the whole map, or to a smaller one. Each class maps (B, H, W, C) to the same."""

import warnings

from torch import Tensor, nn

from ..arch import Site, StageSpec
from ..ops.layout import pad_to_multiple
from ..ops.reference import average_values
from .backend import set_backend
from .layers import Projection, conv_last


class GlobalAttention(nn.Module):
    """Attention of all pixels to all pixels."""

    def __init__(self, dim, heads, *, attn_drop=0.0, proj_drop=0.0, backend='auto'):
        super().__init__()
        self.heads = heads
        self.attn_drop = attn_drop
        self.proj_q = Projection(dim, dim)
        self.proj_kv = Projection(dim, 2 * dim)
        self.proj_out = Projection(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        set_backend(self, backend)

    @classmethod
    def from_spec(cls, spec: StageSpec, site: Site) -> nn.Module:
        return cls(spec.dim, spec.heads, attn_drop=site.attn_drop, proj_drop=site.proj_drop)

    def keys(self, x: Tensor) -> Tensor:
        """The map that is attended to."""
        return x

    def forward(self, x: Tensor) -> Tensor:
        H, W = x.shape[1:3]
        q = self.proj_q(x).flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, M, Q, D)
        k, v = self.proj_kv(self.keys(x)).flatten(1, 2).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        x = average_values(logits, v, self.attn_drop if self.training else 0.0)  # (B, M, Q, D)
        return self.proj_drop(self.proj_out(x.transpose(1, 2).flatten(2).unflatten(1, (H, W))))


class PyramidAttention(GlobalAttention):
    """Attention of all pixels to a map reduced by a strided convolution."""

    def __init__(self, dim, heads, *, reduction=1, attn_drop=0.0, proj_drop=0.0, backend='auto'):
        super().__init__(dim, heads, attn_drop=attn_drop, proj_drop=proj_drop)
        self.reduction = reduction
        if reduction > 1:
            self.reduce = nn.Conv2d(dim, dim, reduction, stride=reduction)
            self.reduce_norm = nn.LayerNorm(dim)
        else:
            warnings.warn(f'reduction={reduction} reduces nothing: this is GlobalAttention, kind G', stacklevel=2)
        set_backend(self, backend)

    @classmethod
    def from_spec(cls, spec: StageSpec, site: Site) -> nn.Module:
        drops = dict(attn_drop=site.attn_drop, proj_drop=site.proj_drop)
        return cls(spec.dim, spec.heads, reduction=spec.reduction, **drops)

    def keys(self, x: Tensor) -> Tensor:
        if self.reduction == 1:
            return x
        return self.reduce_norm(conv_last(self.reduce, pad_to_multiple(x, self.reduction)))
