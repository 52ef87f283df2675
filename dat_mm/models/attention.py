# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The kinds of attention: a letter in a StageSpec stands for a class.

A kind of your own is a module that maps (B, H, W, C) to the same, under @register_attention('A', 'what it does'). Its
classmethod from_spec(spec, site) builds it for a StageSpec and a Site, which are in arch.py. Its letter can then be
used wherever the built-in ones can. In a config, custom_imports names the file.
"""

from collections.abc import Callable

from torch import nn

from ..arch import KINDS, add_to_table
from .deformable import DeformableAttention
from .local import NeighborhoodAttention, ShiftedWindowAttention, WindowAttention
from .pooled import GlobalAttention, PyramidAttention

ATTENTION = {
    'L': WindowAttention,
    'S': ShiftedWindowAttention,
    'N': NeighborhoodAttention,
    'D': DeformableAttention,
    'P': PyramidAttention,
    'G': GlobalAttention,
}


def register_attention(letter: str, what: str) -> Callable:
    """A decorator that makes a class the kind of attention of a letter.

    `what` says in a few words what the class does.
    """
    if len(letter) != 1:
        raise ValueError(f'kind {letter!r} has {len(letter)} letters: a kind is one letter')

    def register(kind: type[nn.Module]) -> type[nn.Module]:
        if not hasattr(kind, 'from_spec'):
            raise TypeError(f'kind {letter!r}: {kind.__name__} has no classmethod from_spec(spec, site)')
        add_to_table(KINDS, letter, what, 'kind')
        ATTENTION[letter] = kind
        return kind

    return register
