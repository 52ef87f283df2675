# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Bias tables of one resolution for a model of another. Neighborhood tables never change."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from .deformable import DeformableAttention
from .local import WindowAttention


def _bicubic(table: Tensor, size) -> Tensor:
    resized = F.interpolate(table[None].float(), size=tuple(size), mode='bicubic', align_corners=False)
    return resized[0].to(table.dtype)


def _window(module: WindowAttention, table: Tensor) -> Tensor:
    """((2w-1)^2, M), by its view (M, 2w-1, 2w-1)."""
    old, new = math.isqrt(table.shape[0]), 2 * module.window_size - 1
    return _bicubic(table.T.unflatten(1, (old, old)), (new, new)).flatten(1).T.contiguous()


def _fixed(module: DeformableAttention, table: Tensor) -> Tensor:
    """(M, Q, K), each axis a square map, resized as it would be at run time."""
    sides = [math.isqrt(n) for n in table.shape[1:]]
    if [side**2 for side in sides] != list(table.shape[1:]):
        raise ValueError(f'a fixed position bias of shape {tuple(table.shape)} is not of square maps: cannot resize it')
    for side, size in zip(sides, (module.map_size, module.offset_net.map_size(*module.map_size)), strict=True):
        maps = table.transpose(1, 2).unflatten(2, (side, side))  # the axis to resize comes last
        table = F.interpolate(maps, size=tuple(size), mode='bilinear', align_corners=True).flatten(2)
    return table


def resize_tables(model: nn.Module, state_dict: dict, prefix: str = '') -> None:
    """Resizes, in ``state_dict``, the bias tables whose shape is not the model's."""
    for name, module in model.named_modules():
        if isinstance(module, WindowAttention):
            key, resize = 'relative_position_bias_table', _window
        elif isinstance(module, DeformableAttention) and module.position_bias == 'relative':
            key, resize = (
                'position_bias_table',
                lambda module, table: _bicubic(table, module.position_bias_table.shape[1:]),
            )
        elif isinstance(module, DeformableAttention) and module.position_bias == 'fixed':
            key, resize = 'position_bias_table', _fixed
        else:
            continue
        full = f'{prefix}{name}.{key}'
        table, own = state_dict.get(full), getattr(module, key)
        heads = 1 if isinstance(module, WindowAttention) else 0  # the axis that must be the same
        if (
            table is not None
            and table.ndim == own.ndim
            and table.shape != own.shape
            and table.shape[heads] == own.shape[heads]
        ):
            state_dict[full] = resize(module, table)
