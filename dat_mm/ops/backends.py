# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Which implementations there are, and which one runs.

A named backend runs or raises its reason. 'auto' is the first of the table, fastest first, that can take the call and
is worth it at its size; the reference, at the end, always is.
"""

from collections.abc import Callable
from typing import NamedTuple

from . import dense, reference, separable, tiles
from .fused import deformable as fused_deformable
from .fused import neighborhood as fused_neighborhood
from .fused import sampling as fused_sampling


def _nothing_against(**call) -> None:
    return None


def _always(**call) -> bool:
    return True


class Backend(NamedTuple):
    run: Callable
    why_not: Callable = _nothing_against  # given the call: the reason why it cannot take it, or None
    pays: Callable = _always  # given the call: whether it is faster than what stands below


DEFORMABLE = {
    'triton': Backend(fused_deformable.deformable_attention, fused_deformable.why_not, fused_deformable.pays),
    'separable': Backend(separable.deformable_attention, separable.why_not, separable.pays),
    'dense': Backend(dense.deformable_attention, dense.why_not, dense.pays),
    'reference': Backend(reference.deformable_attention),
}
NEIGHBORHOOD = {
    'triton': Backend(fused_neighborhood.neighborhood_attention, fused_neighborhood.why_not, fused_neighborhood.pays),
    'tiles': Backend(tiles.neighborhood_attention, tiles.why_not),
    'reference': Backend(reference.neighborhood_attention),
}
SAMPLING = {
    'triton': Backend(fused_sampling.sample_features, fused_sampling.why_not, fused_sampling.pays),
    'reference': Backend(reference.sample_features),
}


def check_backend(backend: str) -> None:
    known = dict.fromkeys(['auto', *DEFORMABLE, *NEIGHBORHOOD])
    if backend not in known:
        raise ValueError(f'backend={backend!r} is unknown: there are {", ".join(known)}')


def for_op(backend: str, backends: dict) -> str:
    """The backend of one op, in a model that names one: where only the other op has it, this one chooses for itself."""
    return backend if backend in backends else 'auto'


def choose(backends: dict[str, Backend], backend: str, call: dict) -> Callable:
    """The function that runs this call."""
    if backend == 'auto':
        return next(b.run for b in backends.values() if b.why_not(**call) is None and b.pays(**call))
    if backend not in backends:
        raise ValueError(f'backend={backend!r} is unknown here: there are auto, {", ".join(backends)}')
    if reason := backends[backend].why_not(**call):
        raise RuntimeError(f'backend {backend!r}: {reason}')
    return backends[backend].run
