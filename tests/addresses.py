# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Runs programs of Triton kernels on tensors of any size that are not in memory, and checks the places they touch.

The tensors are on the device 'meta'. Triton's interpreter runs a few programs of a grid. What they load is made up, and
of each loop they run the ends. They run twice: once with whole numbers of 32 bits, which wrap as they do on a GPU, and
once with all of them in 64 bits. Both must touch the same places, and none outside of the tensors.
"""

from collections import Counter
from contextlib import ExitStack, contextmanager
from importlib import import_module
from unittest import mock

import numpy as np
import torch
from op_cases import KERNELS

from dat_mm.ops.fused import deformable

REGION = 44  # bits of an address within the region of a tensor, which begins in the middle of its region
MOST_PROGRAMS = 2**31 - 1  # of the first dimension of a grid


def length_of(x) -> int:
    """Counts the numbers from the first to the last one of a tensor in memory."""
    return 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True)) if x.numel() else 0


def ends_of_range(*bounds) -> list[int]:
    """Stands for `range` in kernels: the first two and the last two numbers of one."""
    numbers = range(*map(int, bounds))
    return sorted({*numbers[:2], *numbers[-2:]})


class Recorder:
    """Stands for the memory of a GPU: it runs programs of each launch, and writes down what they touch."""

    def __init__(self, only: str | None, launches: Counter | None = None):
        self.only, self.expected, self.launches = only, launches, Counter()
        self.touched = []  # (kernel, tensor, places in it)
        self.chance = np.random.default_rng(0)

    def launch(self, name, kernel, grid, args, options):
        (size,) = grid
        assert 0 < size <= MOST_PROGRAMS, f'{name} has a grid of {size}'
        self.launches[name] += 1
        if self.only not in (None, name):
            return
        if self.expected is None or self.launches[name] not in (1, self.expected[name]):
            return
        self.programs, self.size, self.name = sorted({0, size // 3, size - 1}), size, name
        self.tensors = [(n, x) for n, x in zip(kernel.arg_names, args, strict=False) if torch.is_tensor(x)]
        small = [torch.empty(1, dtype=x.dtype) for _, x in self.tensors]
        self.bases = {x.data_ptr(): (2 * i + 1) << (REGION - 1) for i, x in enumerate(small)}
        tensors = iter(small)
        args = [next(tensors) if torch.is_tensor(x) else x for x in args]
        kernel[(len(self.programs),)](*args, **options)

    def touch(self, pointers, mask):
        """Writes down what is touched."""
        shape = np.broadcast_shapes(pointers.data.shape, mask.data.shape)
        places = np.broadcast_to(pointers.data, shape)[np.broadcast_to(mask.data, shape).astype(bool)].astype(np.int64)
        if places.size:
            (i,) = set((places >> REGION).tolist())
            name, x = self.tensors[i]
            places = (places - ((2 * i + 1) << (REGION - 1))) // x.itemsize
            self.touched.append((self.name, name, places, length_of(x)))

    def make_up(self, shape, dtype):
        """Makes numbers such as a kernel may find: points in the map and far outside, and words of any bits."""
        if dtype.kind == 'f':
            return self.chance.choice(np.array([-1, -0.3, 0, 1, 1, 1.7, 1e9, np.nan], dtype.type), shape)
        limits = np.iinfo(dtype)
        return self.chance.integers(limits.min, limits.max, shape, dtype, endpoint=True)


class Kernel:
    """Stands for a kernel, and hands its launches to a recorder."""

    def __init__(self, name, kernel, recorder):
        self.name, self.kernel, self.recorder = name, kernel, recorder

    def __getitem__(self, grid):
        return lambda *args, **options: self.recorder.launch(self.name, self.kernel, grid, args, options)


@contextmanager
def patched(recorder: Recorder, wide: bool):
    """Has Triton's interpreter run kernels on a recorder, if `wide` with all whole numbers in 64 bits."""
    from triton.runtime import interpreter

    builder, handle = interpreter.interpreter_builder, interpreter.TensorHandle
    make_argument, set_grid_idx, make_range = interpreter._implicit_cvt, builder.set_grid_idx, builder.create_make_range
    program_id = builder.create_get_program_id

    def widen(x):
        if wide and x.data.dtype.kind in 'iu':
            x.data = x.data.astype(np.int64)
        return x

    def argument(x):
        made = make_argument(x)
        if torch.is_tensor(x):
            made.handle.data = np.array([recorder.bases[x.data_ptr()]], np.uint64)
        elif isinstance(x, int):
            widen(made.handle)
        return made

    def load(pointers, mask, other, *_):
        recorder.touch(pointers, mask)
        element = pointers.get_element_ty()
        dtype = np.dtype(interpreter._get_np_dtype(element))
        data = recorder.make_up(pointers.data.shape, dtype)
        return handle(np.where(mask.data, data, 0 if other is None else other.data).astype(dtype), element)

    changes = dict(
        create_masked_load=load,
        create_masked_store=lambda pointers, value, mask, *_: recorder.touch(pointers, mask),
        create_get_program_id=lambda axis: widen(program_id(axis)),
        create_make_range=lambda *args: widen(make_range(*args)),
        set_grid_dim=lambda *_: setattr(builder, 'grid_dim', (recorder.size, 1, 1)),
        set_grid_idx=lambda x, y, z: set_grid_idx(recorder.programs[x], y, z),
    )
    with ExitStack() as stack:
        for name, change in changes.items():
            stack.enter_context(mock.patch.object(builder, name, change))
        stack.enter_context(mock.patch.object(interpreter, '_implicit_cvt', argument))
        stack.enter_context(mock.patch.object(interpreter, '_validate_np_data_size', lambda *_: True))
        # The launches are to have the blocks of a GPU.
        stack.enter_context(mock.patch('dat_mm.ops.fused.deformable.interprets', lambda: False))
        for file in KERNELS:
            module = import_module(f'dat_mm.ops.fused.{file}_kernels')
            stack.enter_context(mock.patch.object(module, 'range', ends_of_range, create=True))
            for name, kernel in vars(module).copy().items():
                if getattr(kernel, 'kwargs', {}).get('do_not_specialize'):
                    stack.enter_context(mock.patch.object(module, name, Kernel(f'{file} {name}', kernel, recorder)))
        stack.enter_context(np.errstate(all='ignore'))
        yield


def record(call, only: str | None, wide: bool) -> list:
    """Runs an op, and lists what the first launch and the last one of each of its kernels touch."""
    counted = Recorder(only)
    for recorder in (counted, Recorder(only, counted.launches)):
        deformable.place_queries.cache_clear()
        with patched(recorder, wide):
            call()
    return recorder.touched


def check(call, only: str | None = None) -> set[str]:
    """Raises AssertionError if a kernel leaves a tensor or an offset overflows. Returns the names of the kernels.

    `only` names one kernel to look at, as 'sampling forward'.
    """
    touched, exact = record(call, only, wide=False), record(call, only, wide=True)
    for (kernel, name, found, length), (*_, expected, _) in zip(touched, exact, strict=True):
        assert np.array_equal(found, expected), f'{kernel}: an offset into {name} overflows'
        assert found.min() >= 0 and found.max() < length, f'{kernel} leaves {name}, {found.min()} to {found.max()}'
    return {kernel for kernel, *_ in touched}
