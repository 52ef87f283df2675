# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Kernels that pack what those of deformable_kernels.py read: the table, and the places of keys and queries in it.

A word has a cell with its neighbours, or the place along y and x. y and x are in cells.
"""

import math

import triton
import triton.language as tl

ONE = tl.constexpr(4194304.0)
LOG2_E = tl.constexpr(math.log2(math.e))
BITS = tl.constexpr(22)  # after the point, in places in the table; from cell 4 on they are finer than float32


@triton.jit(do_not_specialize=['n'])
def place_keys(points, places, n, cells_y, cells_x, origin_y, origin_x, slope_y, slope_x, BLOCK: tl.constexpr):
    """Writes where the first query is in the table of each of n keys, its ring included: (n, 2), in fixed point."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = at < n
    y = origin_y + slope_y * tl.load(points + at * 2, mask=there, other=0.0)
    x = origin_x + slope_x * tl.load(points + at * 2 + 1, mask=there, other=0.0)
    # If the first query is further from the first cell than the table is long, no query reaches the table.
    y = tl.minimum(tl.maximum(y, -2.0 - cells_y), 2.0 + cells_y)
    x = tl.minimum(tl.maximum(x, -2.0 - cells_x), 2.0 + cells_x)
    tl.store(places + at * 2, to_fixed(y + 1), mask=there)
    tl.store(places + at * 2 + 1, to_fixed(x + 1), mask=there)


@triton.jit(do_not_specialize=['n', 'width'])
def place_queries(places, n, width, step_y, step_x, UNIT: tl.constexpr, BLOCK: tl.constexpr):
    """Writes how far each of n queries is from the first one: (n, 2), in fixed point, or in whole cells if UNIT."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    i = tl.minimum(at, n - 1)
    y, x = i // width, i % width
    if not UNIT:
        y, x = to_fixed(y * step_y), to_fixed(x * step_x)
    tl.store(places + at * 2, y, mask=at < n)
    tl.store(places + at * 2 + 1, x, mask=at < n)


@triton.jit(do_not_specialize=['n', 'cells_y', 'cells_x'])
def pack(table, packed, n, cells_y, cells_x, CORNERS: tl.constexpr, LARGEST: tl.constexpr, BLOCK: tl.constexpr):
    """Writes each cell of a table, times log2(e), beside its neighbours: n words of 2 corners, or of 4."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row, x = at // (cells_x + 2), at % (cells_x + 2) - 1
    head, y = row // (cells_y + 3), row % (cells_y + 3) - 1
    for corner in tl.static_range(CORNERS):
        j, i = y + corner // 2, x + corner % 2
        inside = (at < n) & (j >= 0) & (j < cells_y) & (i >= 0) & (i < cells_x)
        cell = tl.load(table + (head * cells_y + j) * cells_x + i, mask=inside, other=0.0).to(tl.float32) * LOG2_E
        if CORNERS == 4:  # in float16. NaN stays
            cell = tl.where(cell > LARGEST, LARGEST, tl.where(cell < -LARGEST, -LARGEST, cell))
        tl.store(packed + at * CORNERS + corner, cell.to(packed.dtype.element_ty), mask=at < n)


@triton.jit
def to_fixed(t):
    """A number of cells as an integer with BITS bits after the point."""
    return tl.floor(t * ONE + 0.5).to(tl.int32)
