# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The backbone and its attention modules. All but DAT need torch alone."""

from .deformable import DeformableAttention
from .local import NeighborhoodAttention, PyramidAttention, WindowAttention

__all__ = ['DAT', 'DeformableAttention', 'NeighborhoodAttention', 'PyramidAttention', 'WindowAttention']


def __getattr__(name):
    if name == 'DAT':  # on first use: it needs mmengine, and registry says so where that is missing
        from .. import registry  # noqa: F401
        from .dat import DAT

        return DAT
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
