# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The layers around the attention. Maps are channels last, (B, H, W, C), from the stem to the output norms."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from .. import ops
from ..ops.backends import DEPTHWISE, FEED_FORWARD, LINEAR, for_op
from ..ops.layout import pad_to_multiple
from ..ops.remaking import cheaply


def conv_last(conv: nn.Module, x: Tensor) -> Tensor:
    """A convolution of a channels-last map. Its permutations copy nothing."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Projection(nn.Linear):
    """A linear layer of a map, followed by GELU if the activation says so."""

    backend = 'auto'

    def __init__(self, dim: int, out_dim: int, bias: bool = True, *, activation: str = 'none'):
        super().__init__(dim, out_dim, bias)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        backend = for_op(self.backend, LINEAR)
        return ops.linear(x, self.weight, self.bias, activation=self.activation, backend=backend)


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


_HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')
_PLAIN = (Projection, nn.Conv2d, nn.Dropout)


def are_plain(*layers: nn.Module) -> bool:
    """Whether calling these layers does what their weights say and no more.

    It does more where somebody watches a layer by a hook or has put another in its place, and where dropout is at work.
    """
    if any(getattr(torch_module, f'_global{hooks}') for hooks in _HOOKS):
        return False
    return all(
        type(layer) in _PLAIN
        and not any(getattr(layer, hooks) for hooks in _HOOKS)
        and not (isinstance(layer, nn.Dropout) and layer.p and layer.training)
        for layer in layers
    )


def add_conv(conv: nn.Conv2d, x: Tensor, backend: str) -> Tensor:
    """The sum of a channels-last map and its depthwise convolution. They are one op as long as nobody looks inside."""
    if not are_plain(conv):
        return x + conv_last(conv, x)
    return ops.add_depthwise(x, conv.weight, conv.bias, backend=for_op(backend, DEPTHWISE))


class MLP(nn.Module):
    """Two linear layers with GELU between them, on each pixel.

    They are one op as long as nobody looks inside. Otherwise each layer is called once, with the whole map.
    """

    backend = 'auto'

    def __init__(self, dim: int, hidden: int, drop: float = 0.0, *, activation: str = 'gelu'):
        super().__init__()
        self.linear1 = Projection(dim, hidden, activation=activation)
        self.drop1 = nn.Dropout(drop)
        self.linear2 = Projection(hidden, dim)
        self.drop2 = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        if not are_plain(*self.children()):
            return self.drop2(self.linear2(self.hidden(x)))
        weights = (y for layer in (self.linear1, self.linear2) for y in (layer.weight, layer.bias))
        return ops.feed_forward(x, *weights, **self.between(), backend=for_op(self.backend, FEED_FORWARD))

    def hidden(self, x: Tensor) -> Tensor:
        """The map that the second linear layer gets."""
        return self.drop1(self.linear1(x))

    def between(self) -> dict:
        """The arguments of the op beside the two linear layers."""
        return {}


class ConvMLP(MLP):
    """An MLP that looks at the neighboring pixels before its activation."""

    def __init__(self, dim: int, hidden: int, drop: float = 0.0):
        super().__init__(dim, hidden, drop, activation='none')
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def hidden(self, x: Tensor) -> Tensor:
        x = self.drop1(self.linear1(x))
        return cheaply(F.gelu, add_conv(self.conv, x, self.backend))

    def between(self) -> dict:
        return dict(conv_weight=self.conv.weight, conv_bias=self.conv.bias)


class PatchConv(nn.Module):
    """A convolution of patches that do not overlap, then a norm: the stem (with bias) and the downsampling of 'dat'."""

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
