# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What a file may cost: the memory it may take, and how deeply its content may be nested."""

import numpy as np
import torch

from ..errors import UserError

FREE = 256 << 20  # so much memory may any file take, however small it is
TIMES = 4  # and so many times its own size beyond that
DEPTH = 64  # so deeply may containers be nested
_NODE = 16  # bytes that each value costs whoever walks through the content

SCALARS = {str, bytes, int, float, bool, type(None)}
_TORCH = {torch.Tensor, torch.nn.Parameter, torch.Size, torch.device, torch.dtype}
_LEAVES = {*SCALARS, *_TORCH, bytearray, complex, slice, np.ndarray}


class Refused(UserError, ValueError):
    """A file that is not read, with the reason in one line."""


def clean(text) -> str:
    """Makes text from a file fit for a line on a terminal."""
    return ''.join(c if c.isprintable() else '?' for c in str(text)[:100])


class Allowance:
    """The memory that a file of a size may take while it is read and by what is made of it.

    Everything is paid before it is made: each opcode of a pickle, each copy, each tensor, also where tensors share
    their numbers, because whoever uses them copies each.
    """

    def __init__(self, size: int):
        self.left = FREE + TIMES * size

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise Refused(f'its content needs more than {FREE >> 20} MB and {TIMES} times the size of the file')


def check_key(key):
    """Returns a value that may be in a set or the key of a dict: hashing a deep tuple ends the interpreter."""
    if type(key) not in SCALARS:
        raise Refused(f'it has a key that is a {type(key).__name__}')
    if type(key) is int and abs(key) >> 63:
        raise Refused('it has a key that is an integer of more than 64 bits')
    return key


def check_tree(content, allowance: Allowance, leaves=()) -> None:
    """Raises unless a walk through the content ends, soon and without deep recursion.

    A list that holds another twice, which holds a third twice, and so on, is small in memory and endless to a walk.
    """
    leaves = {*_LEAVES, *leaves}
    done = {}  # id of a container: its height, and the number of values in it with all their repetitions

    def visit(value, depth):
        kind = type(value)
        if kind in leaves or isinstance(value, (np.number, np.bool_)):
            return 0, 1
        if id(value) in done:
            return done[id(value)]
        if depth > DEPTH:
            raise Refused(f'its content is nested more than {DEPTH} deep')
        if isinstance(value, dict):
            parts = value.values()
        elif kind in (list, tuple, set, frozenset):
            parts = value
        else:
            raise Refused(f'it holds a stray {kind.__name__}')
        height, count = 0, 1
        for part in parts:
            below, inside = visit(part, depth + 1)
            height, count = max(height, below + 1), count + inside
        if depth + height > DEPTH + 1:
            raise Refused(f'its content is nested more than {DEPTH} deep')
        done[id(value)] = height, count
        return height, count

    allowance.spend(visit(content, 1)[1] * _NODE)
