# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Blocks and stages, from their StageSpec."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..arch import Generation, StageSpec
from ..ops.backends import DEFORMABLE, NEIGHBORHOOD, for_op
from ..ops.layout import compiling
from .deformable import DeformableAttention
from .layers import MLP, ConvMLP, DropPath, conv_last
from .local import NeighborhoodAttention, PyramidAttention, WindowAttention

MLP_RATIO = 4
IN_CACHE = 12 << 20  # bytes


def in_cache(x: Tensor) -> int:
    """So much along the first axis that the widest map of an MLP stays in the caches; all but in inference on a CPU."""
    if x.device.type != 'cpu' or torch.is_grad_enabled() or compiling():
        return x.shape[0]
    return max(1, IN_CACHE // (MLP_RATIO * x[0].numel() * x.element_size()))


def make_attention(kind: str, spec: StageSpec, *, map_size, convention, backend, attn_drop, proj_drop) -> nn.Module:
    common = dict(dim=spec.dim, heads=spec.heads, attn_drop=attn_drop, proj_drop=proj_drop)
    common['backend'] = for_op(backend, NEIGHBORHOOD if kind == 'N' else DEFORMABLE)
    match kind:
        case 'L' | 'S':
            return WindowAttention(**common, window_size=spec.window_size, shifted=kind == 'S')
        case 'N':
            return NeighborhoodAttention(**common, kernel_size=spec.window_size)
        case 'P':
            return PyramidAttention(**common, reduction=spec.reduction)
    return DeformableAttention(
        **common,
        map_size=map_size,
        groups=spec.groups,
        key_stride=spec.key_stride,
        offset_kernel=spec.offset_kernel,
        range_factor=spec.range_factor,
        offsets=spec.offsets,
        position_bias=spec.position_bias,
        convention=convention,
    )


class Block(nn.Module):
    """One block: attention and MLP, each with its norm and residual; of kind X, a convolution before the MLP."""

    def __init__(
        self, kind: str, spec: StageSpec, generation: Generation, *, drop_path, drop_rate, backend, **attention
    ):
        super().__init__()
        dim = spec.dim
        self.local_perception = nn.Conv2d(dim, dim, 3, padding=1, groups=dim) if generation.local_perception else None
        if kind == 'X':
            self.attn = None
            self.conv = nn.Conv2d(dim, dim, spec.window_size, padding=spec.window_size // 2, groups=dim)
        else:
            self.norm1 = nn.LayerNorm(dim)
            attention |= dict(convention=generation.convention, proj_drop=drop_rate, backend=backend)
            self.attn = make_attention(kind, spec, **attention)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = (ConvMLP if generation.conv_mlp else MLP)(dim, MLP_RATIO * dim, drop_rate, backend)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        if self.local_perception is not None:
            x = x + conv_last(self.local_perception, x)
        if self.attn is None:
            return x + self.drop_path(self.feed_forward(conv_last(self.conv, x)))
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.feed_forward(x))

    def feed_forward(self, x: Tensor) -> Tensor:
        """The norm and the MLP; for inference on a CPU in bands of rows that fit the caches."""
        height = x.shape[1]
        rows = in_cache(x.transpose(0, 1))
        if rows >= height:
            return self.mlp(self.norm2(x))
        out, halo = torch.empty_like(x), self.mlp.halo
        for top in range(0, height, rows):
            bottom, first = min(top + rows, height), max(top - halo, 0)
            band = self.mlp(self.norm2(x[:, first : bottom + halo]))
            out[:, top:bottom] = band[:, top - first : bottom - first]
        return out


class Stage(nn.Module):
    """The blocks of a stage; with_cp recomputes each in the backward pass instead of keeping its activations."""

    def __init__(self, spec: StageSpec, generation: Generation, *, drop_path: list[float], with_cp: bool, **block):
        super().__init__()
        self.with_cp = with_cp
        self.blocks = nn.ModuleList(
            Block(kind, spec, generation, drop_path=rate, **block)
            for kind, rate in zip(spec.kinds, drop_path, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        images = in_cache(x)
        if images < x.shape[0]:
            return torch.cat([self(part) for part in x.split(images)])
        for block in self.blocks:
            if self.with_cp and self.training and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)  # re-entrant ones break under DDP
            else:
                x = block(x)
        return x
