# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Linear layers by oneDNN on a CPU. In inference it computes the activation too.

PyTorch takes MKL by default. oneDNN was measured to be a tenth faster, except for the gradient of the weight. It adds
the bias and the activation while the numbers are still in registers.
"""

import torch
from torch import Tensor

from . import reference
from .tracing import autocast_dtype, compiling

AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, '_linear_pointwise')
# On a processor without AVX-512, oneDNN has no products in bfloat16 and raises an error.
DTYPES = [torch.float32]
if AVAILABLE and torch.ops.mkldnn._is_mkldnn_bf16_supported():
    DTYPES.append(torch.bfloat16)


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str = 'none') -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], 'none')


class LinearFunction(torch.autograd.Function):
    """A linear layer in training: oneDNN makes the output and the gradient of x, PyTorch's default all the rest."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, weight, bias):
        return multiply(x, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ weight if torch.is_grad_enabled() else multiply(grad, weight.t())
        grad = grad.flatten(0, -2)
        if ctx.needs_input_grad[1]:
            grad_weight = grad.t() @ x.flatten(0, -2)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(0)
        return grad_x, grad_weight, grad_bias


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, activation: str) -> Tensor:
    if torch.is_grad_enabled():
        return reference.activate(LinearFunction.apply(x, weight, bias), activation)
    dtype = autocast_dtype('cpu') or x.dtype
    x, weight, bias = (None if t is None else t.to(dtype) for t in (x, weight, bias))
    return multiply(x, weight, bias, activation)


def why_not(x: Tensor, weight: Tensor, **call) -> str | None:
    if not AVAILABLE:
        return 'this PyTorch has no oneDNN'
    if x.device.type != 'cpu':
        return f'oneDNN is for a CPU, and x is on {x.device.type}'
    if compiling():
        return 'a compiler sees plain operators only'
    autocast = autocast_dtype('cpu')
    if torch.is_grad_enabled():
        if x.dtype == weight.dtype == torch.float32 and autocast is None:
            return None
        return f'with gradients it takes float32 without autocast, not {x.dtype}'
    dtype = autocast or x.dtype
    return None if dtype in DTYPES else f'it has no {dtype} on this processor'
