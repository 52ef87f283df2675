# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The backbone and its attention modules. They need torch alone, and DAT is mmengine's kind of module where that is."""

from .attention import ATTENTION, register_attention
from .backend import set_backend
from .deformable import DeformableAttention
from .local import NeighborhoodAttention, ShiftedWindowAttention, WindowAttention
from .pooled import GlobalAttention, PyramidAttention
from .position_bias import POSITION_BIAS, Bias, PositionBias, register_position_bias

__all__ = [
    'ATTENTION',
    'DAT',
    'POSITION_BIAS',
    'Bias',
    'DeformableAttention',
    'GlobalAttention',
    'NeighborhoodAttention',
    'PositionBias',
    'PyramidAttention',
    'ShiftedWindowAttention',
    'WindowAttention',
    'register_attention',
    'register_position_bias',
    'set_backend',
]


def __getattr__(name):
    if name == 'DAT':  # on first use: where mmengine is installed, it imports that
        from .dat import DAT

        return DAT
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
