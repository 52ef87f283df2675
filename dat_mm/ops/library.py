# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Ops of torch.library. A compiler sees each as one operator and needs to know its shapes only."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import grid

LIBRARY = torch.library.Library('dat_mm', 'FRAGMENT')


def register(name: str, signature: str, run: Callable, fake: Callable) -> None:
    """Defines torch.ops.dat_mm.NAME, which calls `run` on any device, without gradients or autocast.

    `fake` gives empty tensors of the same shapes.
    """

    def op(x, *args):
        with torch.no_grad(), grid.full_precision(x), torch.cuda.device_of(x):
            return run(x, *args)

    LIBRARY.define(name + signature)
    LIBRARY.impl(name, op, 'CompositeExplicitAutograd')
    LIBRARY.impl(name, fake, 'Meta')


def register_deformable(name: str, forward: Callable, backward: Callable, fake: Callable) -> Callable:
    """Defines the ops NAME and NAME_backward, and returns a function with gradients that calls them.

    They are for a deformable attention that makes its logits again in the backward pass.
    forward(q, k, v, points, table, convention, scale) gives the output and the logs of sums.
    backward(grad, q, k, v, points, table, out, log_sum, convention, scale) gives the gradients of the five tensors.
    Without a table, it gives those of the first three.
    """
    inputs, how = 'Tensor q, Tensor k, Tensor v, Tensor points, Tensor? table', 'str convention, float scale'
    register(name, f'({inputs}, {how}) -> (Tensor, Tensor)', forward, fake)
    signature = f'(Tensor grad, {inputs}, Tensor out, Tensor log_sum, {how}) -> Tensor[]'
    register(f'{name}_backward', signature, backward, _fake_backward)
    op, backward_op = (getattr(torch.ops.dat_mm, n) for n in (name, f'{name}_backward'))

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v, points, table, convention, scale):
            out, log_sum = op(q, k, v, points, table, convention, scale)
            ctx.save_for_backward(q, k, v, points, table, out, log_sum)
            ctx.how = convention, scale
            return out

        @staticmethod
        @once_differentiable
        def backward(ctx, grad):
            grads = backward_op(grad, *ctx.saved_tensors, *ctx.how)
            return *grads, *[None] * (7 - len(grads))

    return Attention.apply


def _fake_backward(grad, q, k, v, points, table, *_):
    B, M, H, W, D = q.shape
    others = (k, v) if table is None else (k, v, points, table)
    return [q.new_empty(B, H, W, M, D).permute(0, 3, 1, 2, 4), *(x.new_empty(x.shape) for x in others)]


def why_not_table(bias: Tensor | None, dropout: float) -> str | None:
    """Why an attention that makes its logits again cannot take this call, or None if it can."""
    if bias is not None:
        return 'it takes a table, not a bias for each query and key'
    if dropout:
        return 'it has no dropout'
    return None
