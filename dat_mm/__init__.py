# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""DAT and DAT++, vision transformers with deformable attention, for OpenMMLab."""

from importlib import import_module

from .version import __version__

# Looked up on first use, so that ``dat_mm.ops`` needs torch alone.
_PUBLIC = {
    'ARCHS': 'dat_mm.arch',
    'DAT': 'dat_mm.models',
    'DeformableAttention': 'dat_mm.models',
    'StageSpec': 'dat_mm.arch',
    'deformable_attention': 'dat_mm.ops',
    'neighborhood_attention': 'dat_mm.ops',
    'register_attention': 'dat_mm.models',
    'register_position_bias': 'dat_mm.models',
    'set_backend': 'dat_mm.models',
}
__all__ = ['__version__', *_PUBLIC]


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__():
    return __all__
