# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Neighborhood attention by the kernels of neighborhood_kernels.py: launches and gradients. There are no atomics.

B batch, M heads, D head width, H x W the map, N the side of a neighborhood.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import library, proof, reference
from ..tracing import exporting, needs_gradient
from . import power_of_2, precision, rows, why_not_heads

# Queries of a tile along an axis, keys at a time, and warps, by the greatest width of a head and the bytes of a number.
BLOCKS = {
    (64, 2): (8, 32, 4),
    (128, 2): (8, 32, 8),
    (32, 4): (8, 32, 4),
    (64, 4): (4, 32, 4),
    (128, 4): (4, 16, 8),
}
# Bytes of a row of keys. With twice as many a block can need more memory than the smallest multiprocessor has.
LARGEST_ROW = 16 << 10
AT_ONCE = 32 << 20  # gradients of logits that are converted to float32 at a time
LOG2_E = math.log2(math.e)


def blocks_of(q: Tensor) -> tuple[int, int, int]:
    """The queries of a tile along an axis, the keys at a time, and the warps."""
    return next(blocks for (width, size), blocks in BLOCKS.items() if q.shape[-1] <= width and q.itemsize == size)


def columns_of(tile: int, kernel_size: int) -> int:
    """The keys of a row that the queries of a tile see, or more."""
    return power_of_2(tile + kernel_size - 1)


class Call:
    """The arguments of a call as all kernels take them."""

    def __init__(self, q, k, v, table, kernel_size: int, scale: float):
        self.B, self.M, self.H, self.W, D = q.shape
        self.q, self.k, self.v = rows(q), rows(k), rows(v)
        self.table = q.new_empty(0, dtype=torch.float32) if table is None else (table.float() * LOG2_E).contiguous()
        tile, keys, warps = blocks_of(q)
        self.programs = self.B * self.M * -(-self.H // tile) * -(-self.W // tile)
        columns = columns_of(tile, kernel_size)
        self.sizes = self.M, self.H, self.W, scale * LOG2_E
        self.options = dict(
            D=D,
            BLOCK_D=power_of_2(D),
            TILE=tile,
            ROWS=max(1, keys // columns),
            COLUMNS=columns,
            KERNEL=kernel_size,
            TABLE=table is not None,
            PRECISION=precision(),
            num_warps=warps,
            num_stages=1,
        )


def strides(*tensors: Tensor) -> list[int]:
    """The strides of all axes but the last, which is contiguous."""
    return [n for x in tensors for n in x.stride()[:-1]]


def like_map(q: Tensor) -> Tensor:
    """Makes an empty (B, M, H, W, D) that lies in memory as (B, H, W, M, D), which is what the projection takes."""
    B, M, H, W, D = q.shape
    return q.new_empty(B, H, W, M, D).permute(0, 3, 1, 2, 4)


def forward(q, k, v, table, kernel_size: int, scale: float) -> tuple[Tensor, Tensor]:
    """Computes the output (B, M, H, W, D), and the log2 of the sum of each query's powers of 2 (B, M, H, W)."""
    from . import neighborhood_kernels as kernels

    call = Call(q, k, v, table, kernel_size, scale)
    out, log_sum = _fake_forward(q, k, v, table, kernel_size, scale)
    kernels.forward[(call.programs,)](
        *(call.q, call.k, call.v, call.table, out, log_sum),
        *strides(call.q, call.k, call.v, out),
        *call.sizes,
        **call.options,
    )
    return out, log_sum


def backward(grad, q, k, v, table, out, log_sum, kernel_size: int, scale: float) -> list[Tensor]:
    """Computes the gradients of q, k and v, and of the table if there is one."""
    from . import neighborhood_kernels as kernels

    call = Call(q, k, v, table, kernel_size, scale)
    B, M, H, W = log_sum.shape
    grad = rows(grad.to(q.dtype))
    # The backward of the softmax subtracts this from the gradients of all weights of a query.
    shared = (grad.float() * out.float()).sum(-1).contiguous()
    inputs = call.q, call.k, call.v, call.table, grad, log_sum.contiguous(), shared
    of_q, of_k, of_v = like_map(q), like_map(q), like_map(q)
    of_logits = q.new_empty((B, M, H, kernel_size, W, kernel_size) if table is not None else 0)
    kernels.backward_queries[(call.programs,)](
        *(*inputs, of_q, of_logits),
        *strides(call.q, call.k, call.v, grad, of_q),
        *(*call.sizes, scale),
        **call.options,
    )
    kernels.backward_keys[(call.programs,)](
        *(*inputs, of_k, of_v),
        *strides(call.q, call.k, call.v, grad, of_k),
        *(*call.sizes, scale),
        **call.options,
    )
    if table is None:
        return [of_q, of_k, of_v]
    return [of_q, of_k, of_v, table_gradient(of_logits).to(table.dtype)]


def table_gradient(of_logits: Tensor) -> Tensor:
    """Sums gradients of logits (B, M, H, N, W, N) into (M, 2N-1, 2N-1), by one-hot matrices along x, then along y."""
    B, M, H, N, W, _ = of_logits.shape
    side = torch.arange(2 * N - 1, device=of_logits.device)
    y, x = ((reference.neighbors(n, N, side.device)[1].view(-1, 1) == side).float() for n in (H, W))
    along = side.new_zeros(M, H * N, len(side), dtype=torch.float32)
    for images in of_logits.split(max(1, AT_ONCE // max(1, M * H * N * W * N))):
        along += (images.float().view(-1, W * N) @ x).view(-1, *along.shape).sum(0)
    return y.T @ along


def _fake_forward(q, k, v, table, kernel_size, scale):
    B, M, H, W, _ = q.shape
    return like_map(q), q.new_empty(B, M, H, W, dtype=torch.float32)


def _fake_backward(grad, q, k, v, table, *_):
    return [like_map(q) for _ in range(3)] + ([] if table is None else [table.new_empty(table.shape)])


INPUTS = 'Tensor q, Tensor k, Tensor v, Tensor? table'
HOW = 'int kernel_size, float scale'
library.register('triton_neighborhood', f'({INPUTS}, {HOW}) -> (Tensor, Tensor)', forward, _fake_forward)
library.register(
    'triton_neighborhood_backward',
    f'(Tensor grad, {INPUTS}, Tensor out, Tensor log_sum, {HOW}) -> Tensor[]',
    backward,
    _fake_backward,
)


class Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, table, kernel_size, scale):
        out, log_sum = torch.ops.dat_mm.triton_neighborhood(q, k, v, table, kernel_size, scale)
        ctx.save_for_backward(q, k, v, table, out, log_sum)
        ctx.how = kernel_size, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grads = torch.ops.dat_mm.triton_neighborhood_backward(grad, *ctx.saved_tensors, *ctx.how)
        return *grads, *[None] * (6 - len(grads))


def neighborhood_attention(q, k, v, table, *, kernel_size, scale, dropout):
    return Attention.apply(q, k, v, table, kernel_size, scale)


def why_not(q, k, v, kernel_size, dropout, **call) -> str | None:
    if dropout:
        return 'it has no dropout'
    if reason := why_not_heads(q, k, v):
        return reason
    columns, width = columns_of(blocks_of(q)[0], kernel_size), power_of_2(q.shape[-1])
    if columns * width * q.itemsize > LARGEST_ROW:
        return f'neighborhoods of {kernel_size} are too large for its blocks with heads {q.shape[-1]} wide in {q.dtype}'
    return None


def is_faster(q, **call) -> bool:
    """Whether 'auto' takes the kernels: on CUDA, but not in an exported graph, which is to be of plain operators."""
    return q.is_cuda and not exporting()


def is_proved(q, k, v, table, kernel_size, **call) -> bool:
    """Whether a trial on this machine says that 'auto' may take the kernels for such a call."""
    B, M, H, W, D = q.shape
    question = proof.question('neighborhood_attention', 'triton', q, D, (kernel_size, table is not None))
    return proof.holds(question, (B, H, W, M, kernel_size), needs_gradient(q, k, v, table))


def trial_case(dtype, width: int, how: tuple, size: tuple | None):
    """A call to try the kernels with, on a map that is no multiple of a tile."""
    kernel_size, with_table = how
    B, H, W, M, _ = size or (2, kernel_size + 4, kernel_size + 11, 3, kernel_size)
    numbers = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(B, max(H, kernel_size), W, 3, M, width, generator=numbers).permute(3, 0, 4, 1, 2, 5).to(dtype)
    side = 2 * kernel_size - 1
    table = torch.randn(M, side, side, generator=numbers) if with_table else None
    return dict(q=q, k=k, v=v, table=table), dict(kernel_size=kernel_size, scale=width**-0.5, dropout=0.0)


def work(size: tuple) -> int:
    """The number of logits of a call."""
    B, H, W, M, kernel_size = size
    return B * H * W * M * kernel_size**2
