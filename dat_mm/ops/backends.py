# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Which implementations of an op there are, and which one runs.

A named backend runs or raises its reason. 'auto' is the first of the table, fastest first, that can take the call and
is faster at its size than those below it. The reference, at the end of each table, takes every call.

To add a backend: write its file, with functions of the three signatures below, and its line in the table of the op.
All three are given the arguments of the op by name, whatever the op itself fills in included.
"""

from collections.abc import Callable
from typing import NamedTuple

from . import dense, onednn, parts, reference, separable, tiles, windows
from .fused import deformable as fused_deformable
from .fused import neighborhood as fused_neighborhood
from .fused import sampling as fused_sampling


def _nothing_against(**call) -> None:
    return None


def _always(**call) -> bool:
    return True


class Backend(NamedTuple):
    """One implementation of an op."""

    run: Callable  # the result of the call, with gradients where its tensors need them
    why_not: Callable = _nothing_against  # the reason why it cannot take the call, or None
    is_faster: Callable = _always  # whether it is faster, at this size, than what stands below it


def _of(module, op: str, *rules: str) -> Backend:
    """The function of a module that is named as the op, and those of its rules that the module has."""
    return Backend(getattr(module, op), **{rule: getattr(module, rule) for rule in rules})


DEFORMABLE = {
    'triton': _of(fused_deformable, 'deformable_attention', 'why_not', 'is_faster'),
    'separable': _of(separable, 'deformable_attention', 'why_not', 'is_faster'),
    'dense': _of(dense, 'deformable_attention', 'why_not', 'is_faster'),
    'reference': _of(reference, 'deformable_attention'),
}
NEIGHBORHOOD = {
    'triton': _of(fused_neighborhood, 'neighborhood_attention', 'why_not', 'is_faster'),
    'tiles': _of(tiles, 'neighborhood_attention', 'why_not'),
    'reference': _of(reference, 'neighborhood_attention'),
}
SAMPLING = {
    'triton': _of(fused_sampling, 'sample_features', 'why_not', 'is_faster'),
    'reference': _of(reference, 'sample_features'),
}
WINDOW = {
    'rows': _of(windows, 'window_attention', 'why_not', 'is_faster'),
    'reference': _of(reference, 'window_attention'),
}
LINEAR = {
    'onednn': _of(onednn, 'linear', 'why_not'),
    'reference': _of(reference, 'linear'),
}
FEED_FORWARD = {
    'parts': _of(parts, 'feed_forward', 'why_not', 'is_faster'),
    'layers': Backend(parts.layers),
    'reference': _of(reference, 'feed_forward'),
}
TABLES = (DEFORMABLE, NEIGHBORHOOD, SAMPLING, WINDOW, LINEAR, FEED_FORWARD)


def check_backend(backend: str) -> None:
    """Raises unless some op has a backend of this name."""
    known = dict.fromkeys(['auto', *(name for table in TABLES for name in table)])
    if backend not in known:
        raise ValueError(f'backend={backend!r} is unknown: there are {", ".join(known)}')


def for_op(backend: str, table: dict) -> str:
    """The backend of one op in a model that names a backend: an op that has none of that name chooses for itself."""
    return backend if backend in table else 'auto'


def choose(table: dict[str, Backend], backend: str, call: dict) -> Callable:
    """The function that runs this call."""
    if backend == 'auto':
        return next(b.run for b in table.values() if b.why_not(**call) is None and b.is_faster(**call))
    if backend not in table:
        raise ValueError(f'backend={backend!r} is unknown here: there are auto, {", ".join(table)}')
    if reason := table[backend].why_not(**call):
        raise RuntimeError(f'backend {backend!r}: {reason}')
    return table[backend].run
