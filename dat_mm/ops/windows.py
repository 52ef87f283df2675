# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Maps cut into windows and put together again, and attention within windows by PyTorch's fused attention.

B batch, H x W the map, w the side of a window, N = w w its pixels, M heads, D head width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import contiguous, crop_last, pad_last, round_up
from .tracing import compiling, exporting


def split(x: Tensor, side: int, shift: int = 0) -> Tensor:
    """Pads a map (B, H, W, C), rolls it by a shift, and cuts it into windows (B, rows, columns, N, C)."""
    B, H, W, C = x.shape
    height, width = round_up(H, side), round_up(W, side)
    x = pad_last(x, height, width)
    rows, columns = height // side, width // side
    if shift and gathers(x):
        pixels = places(height, width, side, shift, x.device)
        return Gathered.apply(x.reshape(B, -1, C), pixels).view(B, rows, columns, side * side, C)
    if shift:
        x = x.roll((-shift, -shift), (1, 2))
    if exporting():  # at least two windows along an axis, so that no size can be 1
        rows, columns = torch.sym_max(rows, 2), torch.sym_max(columns, 2)
        x = pad_last(x, rows * side, columns * side)
    x = x.view(B, rows, side, columns, side, C).transpose(2, 3)
    return contiguous(x).view(B, rows, columns, side * side, C)


def join(windows: Tensor, height: int, width: int, side: int, shift: int = 0) -> Tensor:
    """The inverse of split, for a map of height x width."""
    B, rows, columns, _, C = windows.shape
    if shift and gathers(windows):
        pixels = inverse(places(rows * side, columns * side, side, shift, windows.device))
        x = Gathered.apply(windows.reshape(B, -1, C), pixels).view(B, rows * side, columns * side, C)
        return crop_last(x, height, width)
    x = windows.view(B, rows, columns, side, side, C).transpose(2, 3)
    x = contiguous(x).view(B, rows * side, columns * side, C)
    if shift:
        x = crop_last(x, round_up(height, side), round_up(width, side)).roll((shift, shift), (1, 2))
    return crop_last(x, height, width)


def gathers(x: Tensor) -> bool:
    """Whether shifted windows are gathered pixel by pixel, which a CPU does in a third of the time of a roll."""
    return x.device.type == 'cpu' and not compiling()


def places(height: int, width: int, side: int, shift: int, device) -> Tensor:
    """The pixel of a map (height, width) that each pixel of its shifted windows, one after the other, comes from."""
    y, x = ((torch.arange(n, device=device) + shift).remainder(n).view(-1, side) for n in (height, width))
    return (y[:, None, :, None] * width + x[:, None]).flatten()


def inverse(permutation: Tensor) -> Tensor:
    """The permutation that undoes another one."""
    return torch.empty_like(permutation).index_copy_(
        0, permutation, torch.arange(len(permutation), device=permutation.device)
    )


class Gathered(torch.autograd.Function):
    """The pixels of images (B, pixels, C) in another order."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, order):
        return x.index_select(1, order)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx, grad):
        return Gathered.apply(grad, inverse(*ctx.saved_tensors)), None


def mask(height: int, width: int, rows: int, columns: int, side: int, shift: int, device) -> Tensor:
    """The mask (rows, columns, N, N): -100 between pixels that only the roll brought into one window, else 0."""

    def region(n, windows):
        i = torch.arange(windows * side, device=device)
        n = round_up(n, side)
        return (i >= n - side).long() + (i >= n - shift).long()

    regions = region(height, rows)[:, None] * 3 + region(width, columns)
    regions = contiguous(regions.view(rows, side, columns, side).transpose(1, 2)).view(rows, columns, side * side)
    return -100.0 * (regions.unsqueeze(-1) != regions.unsqueeze(-2))


def window_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, mask: Tensor | None, *, dropout: float) -> Tensor:
    """Attention within windows by PyTorch's fused attention.

    Shifted windows go one image at a time, so that their masks are not repeated for each.
    """
    windows = q.shape[:3]
    bias = bias.to(q.dtype)
    if mask is None:
        q, k, v = (x.flatten(0, 2) for x in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, bias.unsqueeze(0)).unflatten(0, windows)
    bias = (bias + mask.unsqueeze(2).to(q.dtype)).flatten(0, 1)  # (rows columns, M, N, N)
    images = zip(*(x.flatten(1, 2) for x in (q, k, v)), strict=True)
    # What comes out lies in memory as (windows, N, M, D). It is put together like that, as the projection wants it.
    out = [F.scaled_dot_product_attention(*image, bias).transpose(1, 2) for image in images]
    return torch.stack(out).unflatten(1, windows[1:]).transpose(3, 4)


def why_not(dropout: float, **call) -> str | None:
    if dropout:
        return 'it has no dropout'
    return None


def is_faster(q: Tensor, **call) -> bool:
    """Whether it is faster, which it is in inference on a CPU.

    With a gradient for the bias, PyTorch falls back to plain products, which take longer.
    """
    return q.device.type == 'cpu' and not torch.is_grad_enabled() and not compiling()
