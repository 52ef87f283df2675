# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Sampling of features by the kernels of sampling_kernels.py, which repeat to the bit. grid_sample on CUDA does not.

B batch, G groups, C channels, H x W the map, K = Hk Wk keys.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import library, proof
from ..tracing import exporting, needs_gradient
from . import FARTHEST, power_of_2, precision, rows
from . import why_not as _why_not

# Sizes of the blocks of a program; KEYS_OF_PIXELS are keys at a time in the gradient of the map.
KEYS = 16
CHANNELS = 64
PIXELS = 64
KEYS_OF_PIXELS = 32


def _sizes(x: Tensor, points: Tensor) -> tuple[int, ...]:
    """The sizes that the kernels take."""
    (H, W, C), G = x.shape[1:], points.shape[1]
    return G, H, W, points.shape[2] * points.shape[3], C // G


def _programs(x: Tensor, points: Tensor) -> tuple[int, int]:
    """The number of programs by blocks of keys, and by blocks of pixels and channels."""
    G, H, W, K, C = _sizes(x, points)
    pairs = x.shape[0] * G
    return pairs * -(-K // KEYS), pairs * -(-H * W // PIXELS) * -(-C // _channels(x, points, CHANNELS))


def _channels(x: Tensor, points: Tensor, most: int) -> int:
    """The channels of a block: those of a group, or `most`."""
    return min(most, power_of_2(x.shape[-1] // points.shape[1]))


def forward(x: Tensor, points: Tensor) -> Tensor:
    from . import sampling_kernels as kernels

    out, x = _fake_forward(x, points), rows(x)
    kernels.forward[_programs(x, points)[:1]](
        *(x, points.float().contiguous(), out),
        *x.stride()[:3],
        *_sizes(x, points),
        BLOCK_K=KEYS,
        BLOCK_C=_channels(x, points, CHANNELS),
        num_stages=1,
    )
    return out


def backward(grad: Tensor, x: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the gradients of x and of points."""
    from . import sampling_kernels as kernels

    x, grad, places = rows(x), grad.to(x.dtype).contiguous(), points.float().contiguous()
    of_x = torch.empty_like(x, memory_format=torch.contiguous_format)
    of_points = torch.empty_like(places)
    sizes, channels = _sizes(x, points), _channels(x, points, CHANNELS)
    of_keys, of_pixels = _programs(x, points)
    kernels.backward_points[(of_keys,)](
        *(x, places, grad, of_points),
        *x.stride()[:3],
        *sizes,
        BLOCK_K=KEYS,
        BLOCK_C=channels,
        num_stages=1,
    )
    kernels.backward_map[(of_pixels,)](
        *(places, grad, of_x),
        *sizes,
        BLOCK_P=PIXELS,
        BLOCK_K=KEYS_OF_PIXELS,
        BLOCK_C=channels,
        PRECISION=precision(),
        num_warps=4,
        num_stages=1,
    )
    return of_x, of_points.to(points.dtype)


def _fake_forward(x, points):
    return x.new_empty(x.shape[0], *points.shape[2:4], x.shape[-1])


def _fake_backward(grad, x, points):
    return x.new_empty(x.shape), points.new_empty(points.shape)


library.register('triton_sample', '(Tensor x, Tensor points) -> Tensor', forward, _fake_forward)
library.register(
    'triton_sample_backward', '(Tensor grad, Tensor x, Tensor points) -> (Tensor, Tensor)', backward, _fake_backward
)


class Sample(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, points):
        ctx.save_for_backward(x, points)
        return torch.ops.dat_mm.triton_sample(x, points)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return torch.ops.dat_mm.triton_sample_backward(grad, *ctx.saved_tensors)


def sample_features(x: Tensor, points: Tensor) -> Tensor:
    return Sample.apply(x, points)


def why_not(x, points) -> str | None:
    """Why the kernels cannot take such a call, or None. Samples and gradients are contiguous, whatever the strides."""
    G, H, W, K, C = _sizes(x, points)
    numbers = (n * G * m for n in (H * W, K) for m in (C, 2))
    if any(n >= FARTHEST for n in (*numbers, *_programs(x, points))):
        return f'x {tuple(x.shape)} or points {tuple(points.shape)} is too large: 2^31 numbers or more an image'
    return _why_not(x, of=1)


def is_faster(x, points) -> bool:
    """Whether 'auto' takes the kernels: on CUDA, but not in an exported graph, which is to be of plain operators."""
    return x.is_cuda and not exporting()


def is_proved(x, points) -> bool:
    """Whether a trial on this machine says that 'auto' may take the kernels for such a call."""
    (B, H, W, C), (G, Hk, Wk) = x.shape, points.shape[1:4]
    question = proof.question('sample_features', 'triton', x, C // G, ())
    return proof.holds(question, (B, H, W, G, Hk, Wk, C // G), needs_gradient(x, points))


def trial_case(dtype, width: int, how: tuple, size: tuple | None):
    """A call to try the kernels with, some of whose points lie outside of the map."""
    B, H, W, G, Hk, Wk, _ = size or (2, 9, 13, 3, 5, 7, width)
    numbers = torch.Generator().manual_seed(0)
    x = torch.randn(B, H, W, G * width, generator=numbers).to(dtype)
    return dict(x=x, points=torch.rand(B, G, Hk, Wk, 2, generator=numbers) * 3 - 1.5), {}


def work(size: tuple) -> int:
    """How many numbers a call samples."""
    B, _, _, G, Hk, Wk, width = size
    return B * G * Hk * Wk * width
