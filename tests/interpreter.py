# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Makes Triton's interpreter compute as a GPU does where it does not by itself.

It keeps bfloat16 as bit patterns, and multiplies these as whole numbers. It computes float32 products in float32,
where a GPU rounds the factors to tf32. And it runs the programs of a grid in order.

Half of its time goes into checks whose results it does not look at, which are left out.
"""

import dataclasses
import random
from contextlib import contextmanager

import numpy as np
import torch


def _wide(data, dtype, bfloat16):
    """Numbers of bfloat16 as float32, and others as they are."""
    if dtype.scalar != bfloat16:
        return data
    return (np.ascontiguousarray(data).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _narrow(data):
    """The bit patterns of numbers that are rounded to bfloat16, to the nearest even."""
    numbers = torch.from_numpy(np.array(data, np.float32))
    return numbers.bfloat16().view(torch.int16).numpy().view(np.uint16).reshape(np.shape(data))


def _tf32(data):
    """Float32 numbers rounded to the ten bits of tf32."""
    bits = np.array(data, np.float32).view(np.uint32)
    return ((bits + 0xFFF + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)).view(np.float32)


def _product(a, b, precision):
    """A product as tensor cores make it: of numbers with ten bits, once, or thrice for nearly all digits."""
    if a.dtype != np.float32 or precision not in ('tf32', 'tf32x3'):
        return np.matmul(a.astype(np.float32), b.astype(np.float32))
    large = _tf32(a), _tf32(b)
    total = np.matmul(*large)
    if precision == 'tf32x3':
        small = _tf32(a - large[0]), _tf32(b - large[1])
        total = total + np.matmul(large[0], small[1]) + np.matmul(small[0], large[1])
    return total


def patch():
    """Corrects products and conversions for good. Triton must be imported with TRITON_INTERPRET=1."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    precisions = interpreter._ir.INPUT_PRECISION
    names = {precisions.TF32: 'tf32', precisions.TF32x3: 'tf32x3'}
    convert = builder.cast_impl

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        wide = [_wide(x.data, x.dtype, tl.bfloat16) for x in (a, b)]
        product = _product(*wide, names.get(input_precision))
        return handle(product.astype(d.data.dtype) + d.data, d.dtype.scalar)

    def cast_impl(self, src, dst_type):
        if tl.bfloat16 not in (src.dtype.scalar, dst_type.scalar):
            return convert(self, src, dst_type)
        data = _wide(src.data, src.dtype, tl.bfloat16)
        to = dst_type.scalar
        data = _narrow(data) if to == tl.bfloat16 else data.astype(interpreter._get_np_dtype(dst_type))
        return handle(data, to)

    def call(self, *args, **kwargs):
        ours = not self.fn.__module__.startswith('triton.')
        return self.rewrite()(*args, **kwargs) if ours else search_and_call(self, *args, **kwargs)

    # It looks for overflows of whole numbers, but tells of them in its debug mode only: see addresses.py.
    instance = interpreter.interpreter_builder
    instance.options = dataclasses.replace(instance.options, sanitize_overflow=False)
    # A function that a kernel calls looks for all functions of Triton, though the launch has replaced them already.
    search_and_call, interpreter.InterpretedFunction.__call__ = interpreter.InterpretedFunction.__call__, call
    builder.create_dot, builder.cast_impl = create_dot, cast_impl
    builder.create_fp_to_fp = lambda self, src, dst_type, rounding_mode: self.cast_impl(src, dst_type)


@contextmanager
def programs_in_random_order(seed: int):
    """Runs the programs of each grid in an order of chance, as nothing on a GPU keeps them in one."""
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    at, orders, chance = builder.set_grid_idx, {}, random.Random(seed)

    def set_grid_idx(x, y, z):
        if (x, y, z) == (0, 0, 0):
            orders['x'] = chance.sample(range(builder.grid_dim[0]), builder.grid_dim[0])
        at(orders['x'][x], y, z)

    builder.set_grid_idx = set_grid_idx
    try:
        yield
    finally:
        del builder.set_grid_idx
