# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Which implementations of an op there are, and which one runs.

A backend that is named runs, or raises the reason why it cannot. 'auto' takes the first of the table that can take the
call and is faster at its size than those below it. A kernel for GPUs has to pass a trial first (proof.py). The
reference, at the end of each table, takes every call.

To add a backend, write its file and its line in the table of the op. The file has the function that runs the op and,
where needed, the rules of Backend. All of them are given every argument of the op by name, defaults filled in.
"""

from collections.abc import Callable
from typing import NamedTuple

from . import dense, depthwise, onednn, parts, portable, proof, reference, separable, tiles, windows
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
    is_proved: Callable = _always  # whether it was tried on this machine, and is right and fast there

    def takes(self, **call) -> bool:
        """Whether 'auto' takes it for this call, unless it takes one above it."""
        return self.why_not(**call) is None and self.is_faster(**call) and self.is_proved(**call)


def _from(module, op: str, *rules: str) -> Backend:
    """The backend of a module: the function that is named as the op, and the module's functions for these rules."""
    return Backend(getattr(module, op), **{rule: getattr(module, rule) for rule in rules})


DEFORMABLE = {
    'triton': _from(fused_deformable, 'deformable_attention', 'why_not', 'is_faster', 'is_proved'),
    'separable': _from(separable, 'deformable_attention', 'why_not', 'is_faster'),
    'dense': _from(dense, 'deformable_attention', 'why_not', 'is_faster'),
    'portable': _from(portable, 'deformable_attention', 'why_not', 'is_faster'),
    'reference': _from(reference, 'deformable_attention'),
}
NEIGHBORHOOD = {
    'triton': _from(fused_neighborhood, 'neighborhood_attention', 'why_not', 'is_faster', 'is_proved'),
    'tiles': _from(tiles, 'neighborhood_attention', 'why_not'),
    'portable': Backend(portable.neighborhood_attention, windows.why_not, portable.is_faster),
    'reference': _from(reference, 'neighborhood_attention'),
}
SAMPLING = {
    'triton': _from(fused_sampling, 'sample_features', 'why_not', 'is_faster', 'is_proved'),
    'reference': _from(reference, 'sample_features'),
}
WINDOW = {
    'rows': _from(windows, 'window_attention', 'why_not', 'is_faster'),
    'reference': _from(reference, 'window_attention'),
}
LINEAR = {
    'onednn': _from(onednn, 'linear', 'why_not'),
    'reference': _from(reference, 'linear'),
}
DEPTHWISE = {
    'folded': _from(depthwise, 'add_depthwise', 'why_not'),
    'reference': _from(reference, 'add_depthwise'),
}
FEED_FORWARD = {
    'parts': _from(parts, 'feed_forward', 'why_not', 'is_faster'),
    'layers': Backend(parts.layers),
    'reference': _from(reference, 'feed_forward'),
}

for _op, _table, _module in (
    ('deformable_attention', DEFORMABLE, fused_deformable),
    ('neighborhood_attention', NEIGHBORHOOD, fused_neighborhood),
    ('sample_features', SAMPLING, fused_sampling),
):
    proof.TRIALS[_op] = proof.Trial(_table, _module.trial_case, _module.work)
TABLES = (DEFORMABLE, NEIGHBORHOOD, SAMPLING, WINDOW, LINEAR, DEPTHWISE, FEED_FORWARD)


def check_backend(backend: str) -> None:
    """Raises an error unless some op has a backend of this name."""
    known = dict.fromkeys(['auto', *(name for table in TABLES for name in table)])
    if backend not in known:
        raise ValueError(f'backend={backend!r} is unknown: there are {", ".join(known)}')


def for_op(backend: str, table: dict) -> str:
    """The backend that a model names, or 'auto' for an op that has none of that name."""
    return backend if backend in table else 'auto'


def choose(table: dict[str, Backend], backend: str, call: dict) -> Callable:
    """The function that runs this call, of the backend that is named or of the one that 'auto' takes."""
    if backend == 'auto':
        return next(b.run for b in table.values() if b.takes(**call))
    if backend not in table:
        raise ValueError(f'backend={backend!r} is unknown here: there are auto, {", ".join(table)}')
    if reason := table[backend].why_not(**call):
        raise RuntimeError(f'backend {backend!r}: {reason}')
    return table[backend].run
