# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Padding, cropping and memory layout of maps, so that torch.export can trace them for any size.

Some functions of PyTorch ask whether a size is 1, or whether one size reaches another. An export would pin the answer
of its example. While exporting, the functions here do the same in ways that do not ask.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .tracing import exporting


def _may_ask(*sizes) -> bool:
    """Whether sizes may be compared: an export knows some as numbers, and has others open."""
    return not exporting() or all(isinstance(n, int) for n in sizes)


def round_up(n: int, multiple: int) -> int:
    return (n + multiple - 1) // multiple * multiple


def pad_last(x: Tensor, height: int, width: int) -> Tensor:
    """Adds zeros on the right and at the bottom of x (B, H, W, C), up to height x width."""
    bottom, right = height - x.shape[1], width - x.shape[2]
    if not _may_ask(bottom, right) or bottom or right:
        x = F.pad(x, (0, 0, 0, right, 0, bottom))
    return x


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    return pad_last(x, round_up(x.shape[1], multiple), round_up(x.shape[2], multiple))


def pad_to_least(x: Tensor, least: int) -> Tensor:
    """Adds zeros on the right and at the bottom of x (B, H, W, C), until both sides have the least size."""
    return pad_last(x, torch.sym_max(x.shape[1], least), torch.sym_max(x.shape[2], least))


def crop_last(x: Tensor, height: int, width: int) -> Tensor:
    """The first height rows and width columns of x (B, H, W, C)."""
    return crop(x, height, width, 1)


def crop(x: Tensor, height: int, width: int, axis: int) -> Tensor:
    """The first height rows and width columns of x, which has rows along an axis and columns along the next."""
    if not _may_ask(height, width, *x.shape[axis : axis + 2]):
        rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
        return x.index_select(axis, rows).index_select(axis + 1, columns)
    if x.shape[axis : axis + 2] == (height, width):
        return x
    return x.narrow(axis, 0, height).narrow(axis + 1, 0, width)


def contiguous(x: Tensor) -> Tensor:
    """The same tensor in one piece of memory, so that it can be viewed in other shapes."""
    return x.clone(memory_format=torch.contiguous_format) if exporting() else x.contiguous()


def channels_last(images: Tensor) -> Tensor:
    """Images (B, C, H, W) as (B, H, W, C).

    On a CPU they are copied. Otherwise the first convolution would give channels first, and its norm would copy that.
    """
    x = images.permute(0, 2, 3, 1)
    return x.contiguous() if x.device.type == 'cpu' else x


def channels_first(x: Tensor) -> Tensor:
    """A map (B, H, W, C) as (B, C, H, W) in one piece of memory, since some compiled ops of mmcv read it raw."""
    return x.permute(0, 3, 1, 2).contiguous()
