# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The parts around the attention. Feature maps are channels last, (B, H, W, C), from the stem to the output norms."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.layout import compiling, pad_to_multiple

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, '_linear_pointwise')


def one_kernel_dtype(x: Tensor) -> torch.dtype | None:
    """In which a linear layer runs as one kernel of oneDNN, which knows no autocast; None where it may not."""
    if x.device.type != 'cpu' or not _ONEDNN or compiling():
        return None
    dtype, autocast = x.dtype, _autocast_dtype()
    if torch.is_grad_enabled():
        return dtype if dtype == torch.float32 and autocast is None else None
    dtype = autocast or dtype
    return dtype if dtype in (torch.float32, torch.bfloat16) else None


def _autocast_dtype() -> torch.dtype | None:
    if hasattr(torch, 'get_autocast_dtype'):  # torch 2.4
        return torch.get_autocast_dtype('cpu') if torch.is_autocast_enabled('cpu') else None
    return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None


def one_kernel(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = 'none') -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], 'none')


class LinearFunction(torch.autograd.Function):
    """oneDNN is a tenth faster than the default, but for the gradient of the weight."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, bias):
        return one_kernel(x, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight if torch.is_grad_enabled() else one_kernel(grad, weight.t())
        grad = grad.flatten(0, -2)
        if ctx.needs_input_grad[1]:
            grad_weight = grad.t() @ x.flatten(0, -2)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0)
        return grad_x, grad_weight, grad_bias


def conv_last(conv: nn.Module, x: Tensor) -> Tensor:
    """A convolution of a channels-last map; neither permutation copies."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Linear(nn.Linear):
    """A linear layer, with GELU after it if asked; on a CPU by oneDNN, in inference with the GELU in one kernel."""

    def __init__(self, dim: int, out_dim: int, bias: bool = True, *, gelu: bool = False, backend: str = 'auto'):
        super().__init__(dim, out_dim, bias)
        self.gelu = gelu
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        dtype = None if self.backend == 'reference' else one_kernel_dtype(x)
        if dtype and not torch.is_grad_enabled():
            x, weight, bias = (None if t is None else t.to(dtype) for t in (x, self.weight, self.bias))
            return one_kernel(x, weight, bias, 'gelu' if self.gelu else 'none')
        x = LinearFunction.apply(x, self.weight, self.bias) if dtype else super().forward(x)
        return F.gelu(x) if self.gelu else x


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
    halo = 0  # pixels around each that it looks at

    def __init__(self, dim: int, hidden: int, drop: float = 0.0, backend: str = 'auto', gelu: bool = True):
        super().__init__()
        self.linear1 = Linear(dim, hidden, gelu=gelu, backend=backend)
        self.linear2 = Linear(hidden, dim, backend=backend)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.linear2(self.drop(self.linear1(x))))


class ConvMLP(MLP):
    """An MLP that looks at the neighboring pixels before its activation."""

    halo = 1

    def __init__(self, dim: int, hidden: int, drop: float = 0.0, backend: str = 'auto'):
        super().__init__(dim, hidden, drop, backend, gelu=False)
        self.conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.linear1(x)).permute(0, 3, 1, 2)
        x = self.conv(x).add_(x)  # in place, for such maps are the largest there are
        return self.drop(self.linear2(F.gelu(x).permute(0, 2, 3, 1)))


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
