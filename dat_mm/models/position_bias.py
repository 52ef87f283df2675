# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The position biases of deformable attention. Each form is a class with its parameters, its bias and its resizing.

A form of your own is a subclass of PositionBias under @register_position_bias('name', 'what it adds'). Then
position_bias='name' can be used wherever the built-in names can.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..arch import POSITION_BIASES, add_to_table
from ..ops import grid
from .layers import conv_last


class Bias(NamedTuple):
    """The bias that a form adds, in up to three places."""

    table: Tensor | None = None  # (M, 2T_h-1, 2T_w-1): the op interpolates it at each displacement of query from key
    logits: Tensor | None = None  # broadcasts to (B, M, Q, K), added to the logits
    output: Tensor | None = None  # (B, H, W, C), added to what the attention gives


class PositionBias(nn.Module):
    """The base of all forms: it knows where it stands and adds nothing.

    map_size and key_map_size are (H, W) of the queries and of the keys at the training resolution.
    """

    def __init__(self, *, dim: int, heads: int, groups: int, map_size, key_map_size, convention: str):
        super().__init__()
        self.dim = dim
        self.heads = heads
        self.groups = groups
        self.map_size = tuple(map_size)
        self.key_map_size = tuple(key_map_size)
        self.convention = convention

    def forward(self, q: Tensor, points: Tensor, key_map_size) -> Bias:
        """The bias for queries q (B, H, W, C) and keys at points (B, G, K, 2), which are a map of key_map_size."""
        return Bias()

    def resized(self, name: str, value: Tensor) -> Tensor:
        """A parameter of another resolution, resized to this one. Any other value comes back as it is."""
        return value


def bicubic(table: Tensor, size) -> Tensor:
    """A table (M, h, w), resized."""
    resized = F.interpolate(table[None].float(), size=tuple(size), mode='bicubic', align_corners=False)
    return resized[0].to(table.dtype)


class NoPositionBias(PositionBias):
    """No bias. The attention knows positions by its points alone."""


class RelativeTable(PositionBias):
    """A table by displacement, interpolated between its cells."""

    def __init__(self, **site):
        super().__init__(**site)
        T_h, T_w = self.map_size
        # displacements from -(T-1) to T-1
        self.table = nn.Parameter(torch.empty(self.heads, 2 * T_h - 1, 2 * T_w - 1))
        nn.init.trunc_normal_(self.table, std=0.01)

    def forward(self, q: Tensor, points: Tensor, key_map_size) -> Bias:
        return Bias(table=self.table)

    def resized(self, name: str, value: Tensor) -> Tensor:
        fits = value.ndim == 3 and len(value) == self.heads
        return bicubic(value, self.table.shape[1:]) if fits else value


class FixedTable(PositionBias):
    """A table by query and key, resized with the map."""

    def __init__(self, **site):
        super().__init__(**site)
        sizes = math.prod(self.map_size), math.prod(self.key_map_size)
        self.table = nn.Parameter(torch.empty(self.heads, *sizes))
        nn.init.trunc_normal_(self.table, std=0.01)

    def forward(self, q: Tensor, points: Tensor, key_map_size) -> Bias:
        old, new = (self.map_size, self.key_map_size), (q.shape[1:3], key_map_size)
        return Bias(logits=self._resize(self.table, old, new))

    def resized(self, name: str, value: Tensor) -> Tensor:
        """The table of a file, resized as it would be at run time.

        A file does not say which maps its table is for, so these have to be square.
        """
        if value.ndim != 3 or len(value) != self.heads:
            return value
        sides = [math.isqrt(n) for n in value.shape[1:]]
        if [side**2 for side in sides] != list(value.shape[1:]):
            raise ValueError(
                f'a fixed position bias of shape {tuple(value.shape)} is not of square maps: cannot resize it'
            )
        return self._resize(value, [(side, side) for side in sides], (self.map_size, self.key_map_size))

    @staticmethod
    def _resize(table: Tensor, old, new) -> Tensor:
        """A table (M, Q, K), resized from the old sizes of the maps of queries and of keys to the new ones."""
        for before, after in zip(old[::-1], new[::-1], strict=True):  # the axis that is resized comes last
            if tuple(before) != tuple(after):
                maps = table.unflatten(-1, before)
                table = F.interpolate(maps, size=tuple(after), mode='bilinear', align_corners=True).flatten(-2)
            table = table.transpose(-2, -1)
        return table


class DepthwiseConv(PositionBias):
    """A depthwise convolution of the queries, added to what the attention gives."""

    def __init__(self, **site):
        super().__init__(**site)
        self.conv = nn.Conv2d(self.dim, self.dim, 3, padding=1, groups=self.dim)

    def forward(self, q: Tensor, points: Tensor, key_map_size) -> Bias:
        return Bias(output=conv_last(self.conv, q))


class CoordinateLinear(nn.Linear):
    """A linear layer that computes in the dtype of its input and not of its weights, since it is for coordinates."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


class LogDisplacement(PositionBias):
    """An MLP of the displacement on a logarithmic scale."""

    def __init__(self, **site):
        super().__init__(**site)
        last = CoordinateLinear(32, self.heads // self.groups, bias=False)
        self.mlp = nn.Sequential(CoordinateLinear(2, 32), nn.ReLU(), last)

    def forward(self, q: Tensor, points: Tensor, key_map_size) -> Bias:
        queries = grid.query_grid(*q.shape[1:3], self.convention, points.dtype, points.device).flatten(0, 1)
        displacement = (queries[:, None] - points[:, :, None]) * 4  # (B, G, Q, K, 2)
        displacement = displacement.sign() * (displacement.abs() + 1).log2() / math.log2(8)
        with grid.full_precision(points):
            bias = self.mlp(displacement)  # (B, G, Q, K, M/G)
        return Bias(logits=bias.permute(0, 1, 4, 2, 3).flatten(1, 2))


POSITION_BIAS = {
    'relative': RelativeTable,
    'fixed': FixedTable,
    'depthwise': DepthwiseConv,
    'log': LogDisplacement,
    'none': NoPositionBias,
}


def register_position_bias(name: str, what: str) -> Callable:
    """A decorator that makes a subclass of PositionBias the form of a name.

    `what` says in a few words what the form adds.
    """

    def register(form: type[PositionBias]) -> type[PositionBias]:
        add_to_table(POSITION_BIASES, name, what, 'position bias')
        POSITION_BIAS[name] = form
        return form

    return register
