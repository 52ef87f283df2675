# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Which implementations there are, and which one runs.

A backend is a function and a ``why_not``: given the arguments of the call, the reason why it cannot take them, or
None. They stand fastest first: 'auto' is the first that can. One that is named runs or raises.
"""

from . import reference, separable, tiles


def anything(**call) -> None:
    return None


DEFORMABLE = {
    'separable': (separable.deformable_attention, separable.why_not),
    'reference': (reference.deformable_attention, anything),
}
NEIGHBORHOOD = {
    'tiles': (tiles.neighborhood_attention, tiles.why_not),
    'reference': (reference.neighborhood_attention, anything),
}


def check_backend(backend: str) -> None:
    known = dict.fromkeys(['auto', *DEFORMABLE, *NEIGHBORHOOD])
    if backend not in known:
        raise ValueError(f'backend={backend!r} is unknown: there are {", ".join(known)}')


def for_op(backend: str, backends: dict) -> str:
    """The backend of one op, in a model that names one: where only the other op has it, this one chooses for itself."""
    return backend if backend in backends else 'auto'


def choose(backends: dict, backend: str, call: dict):
    """The function that runs this call."""
    if backend == 'auto':
        return next(run for run, why_not in backends.values() if why_not(**call) is None)
    if backend not in backends:
        raise ValueError(f'backend={backend!r} is unknown here: there are auto, {", ".join(backends)}')
    run, why_not = backends[backend]
    if reason := why_not(**call):
        raise RuntimeError(f'backend {backend!r}: {reason}')
    return run
