# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The parts around the attention. Feature maps are channels last, (B, H, W, C), from the stem to the output norms."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.shapes import pad_to_multiple


def conv_last(conv: nn.Module, x: Tensor) -> Tensor:
    """A convolution of a channels-last map; neither permutation copies."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class DropPath(nn.Module):
    """Drops a residual branch for whole samples, and scales up the rest."""

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1 - self.rate
        mask = torch.empty(x.shape[0], *[1] * (x.ndim - 1), dtype=x.dtype, device=x.device).bernoulli_(keep)
        return x * mask / keep

    def extra_repr(self):
        return f'rate={self.rate:.3f}'


class MLP(nn.Module):
    def __init__(self, dim: int, hidden: int, drop: float = 0.0):
        super().__init__()
        self.linear1 = nn.Linear(dim, hidden)
        self.linear2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.linear2(self.drop(F.gelu(self.linear1(x)))))


class ConvMLP(MLP):
    """An MLP that looks at the neighboring pixels."""

    def __init__(self, dim: int, hidden: int, drop: float = 0.0):
        super().__init__(dim, hidden, drop)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.linear1(x))
        return self.drop(self.linear2(F.gelu(x + conv_last(self.conv, x))))


class PatchConv(nn.Module):
    """Non-overlapping patches to tokens, then a norm: the stem (with bias) and the downsampling of 'dat'."""

    def __init__(self, in_dim: int, dim: int, size: int, bias: bool):
        super().__init__()
        self.size = size
        self.conv = nn.Conv2d(in_dim, dim, size, stride=size, bias=bias)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(conv_last(self.conv, pad_to_multiple(x, self.size)))


class OverlappingConv(nn.Module):
    """A 3x3 convolution of stride 2, then a norm: the downsampling of 'datpp'."""

    def __init__(self, in_dim: int, dim: int, bias: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, 3, stride=2, padding=1, bias=bias)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(conv_last(self.conv, x))


class ConvStem(OverlappingConv):
    """Two overlapping convolutions: the stem of 'datpp'."""

    def __init__(self, in_dim: int, dim: int):
        super().__init__(in_dim, dim // 2, bias=True)
        self.conv2 = nn.Conv2d(dim // 2, dim, 3, stride=2, padding=1)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(conv_last(self.conv2, F.gelu(super().forward(x))))
