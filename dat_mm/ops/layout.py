# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Padding, cropping and flattening that torch.export can trace for any size.

Some shape functions ask whether a size is 1, or whether one size reaches another, and an export would pin the answer of
its example. While exporting, these do the same by ways that do not ask.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def _never() -> bool:
    return False


# is_exporting came with torch 2.7, is_compiling with 2.3: before, exports have the sizes of their example.
compiling = getattr(torch.compiler, 'is_compiling', _never)
exporting = getattr(torch.compiler, 'is_exporting', compiling)


def trains(*tensors: Tensor | None) -> bool:
    """Whether what is computed from them is kept for a backward."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def round_up(n: int, multiple: int) -> int:
    return (n + multiple - 1) // multiple * multiple


def pad_last(x: Tensor, height: int, width: int) -> Tensor:
    """x (B, H, W, C) with zeros on the right and at the bottom, up to height x width."""
    bottom, right = height - x.shape[1], width - x.shape[2]
    if exporting() or bottom or right:
        x = F.pad(x, (0, 0, 0, right, 0, bottom))
    return x


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    return pad_last(x, round_up(x.shape[1], multiple), round_up(x.shape[2], multiple))


def crop_last(x: Tensor, height: int, width: int) -> Tensor:
    """The first height x width of x (B, H, W, C)."""
    if exporting():
        rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
        return x.index_select(1, rows).index_select(2, columns)
    return x[:, :height, :width]


def packed(x: Tensor) -> Tensor:
    """x in contiguous memory, so that it can be viewed in other shapes."""
    return x.clone(memory_format=torch.contiguous_format) if exporting() else x.contiguous()
