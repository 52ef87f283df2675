# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Reads checkpoints that may come from anybody: nothing in them is run, and a small file stays small in memory.

A checkpoint is a pickle, which is a program. pickles.py reads the few opcodes that torch.save writes, and allowed.py
has what they may name. Neither torch.load nor Python's unpickler is used, so all versions of torch read alike.
"""

from .allowed import HISTORY
from .files import is_whole, read
from .limits import Refused, clean

__all__ = ['HISTORY', 'Refused', 'clean', 'is_whole', 'read']
