# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Kernels that sample features at points. One program has a block of keys, or of pixels, of one image and group.

The gradient of the map is a product. That of a pixel is the sum over all keys of hat(y - row) hat(x - column) times the
gradient of the key. The hats are made where they are needed. No two programs add to the same place in memory.

`pair` is an image and a group. y and x are where a point is in the map, in pixels.
"""

import triton
import triton.language as tl

SIZES = ['groups', 'height', 'width', 'keys', 'channels']  # not specialised: one kernel serves all values


@triton.jit
def place(points, at, there, size, axis: tl.constexpr):
    """Loads where points are along an axis, in pixels: -1 is the first pixel, 1 the last."""
    return (tl.load(points + at * 2 + axis, mask=there, other=0.0) + 1) * 0.5 * (size - 1)


@triton.jit
def load_pixels(x, y, column, height, width, row_step, column_step, there, c):
    """Loads pixels (k, c), zero outside the map. y and column are whole numbers in float32, of any size."""
    inside = there & (y >= 0) & (y < height) & (column >= 0) & (column < width)
    at = tl.where(inside, y, 0.0).to(tl.int32) * row_step + tl.where(inside, column, 0.0).to(tl.int32) * column_step
    return tl.load(x + at[:, None] + c[None, :], mask=inside[:, None] & (c >= 0)[None, :], other=0.0).to(tl.float32)


@triton.jit
def split(t):
    """Splits places into the pixel before each and how far beyond it they are."""
    before = tl.floor(t)
    return before, (t - before)[:, None]


@triton.jit
def load_corners(x, y, column, height, width, row_step, column_step, there, c):
    """Loads the four pixels around points: above left, above right, below left, below right."""
    a = load_pixels(x, y, column, height, width, row_step, column_step, there, c)
    b = load_pixels(x, y, column + 1, height, width, row_step, column_step, there, c)
    d = load_pixels(x, y + 1, column, height, width, row_step, column_step, there, c)
    e = load_pixels(x, y + 1, column + 1, height, width, row_step, column_step, there, c)
    return a, b, d, e


@triton.jit(do_not_specialize=SIZES)
def forward(
    x,
    points,
    out,
    x_image,
    x_row,
    x_column,
    groups,
    height,
    width,
    keys,
    channels,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Writes the samples of a block of points."""
    blocks = tl.cdiv(keys, BLOCK_K)
    pair, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    image, group = pair // groups, pair % groups
    at = block * BLOCK_K + tl.arange(0, BLOCK_K)
    there = at < keys
    points += pair * keys * 2
    x += image * x_image + group * channels
    out += image * keys * groups * channels + group * channels
    top, part_y = split(place(points, at, there, height, 0))
    left, part_x = split(place(points, at, there, width, 1))
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        c = tl.where(c < channels, c, -1)
        a, b, d, e = load_corners(x, top, left, height, width, x_row, x_column, there, c)
        above, below = a + part_x * (b - a), d + part_x * (e - d)
        samples = above + part_y * (below - above)
        to = out + (at * groups * channels)[:, None] + c[None, :]
        tl.store(to, samples.to(out.dtype.element_ty), mask=there[:, None] & (c >= 0)[None, :])


@triton.jit(do_not_specialize=SIZES)
def backward_points(
    x,
    points,
    grad,
    of_points,
    x_image,
    x_row,
    x_column,
    groups,
    height,
    width,
    keys,
    channels,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Writes the gradient of a block of points.

    grad (images, keys, groups, channels) and of_points (images, groups, keys, 2) are contiguous.
    """
    blocks = tl.cdiv(keys, BLOCK_K)
    pair, block = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks
    image, group = pair // groups, pair % groups
    at = block * BLOCK_K + tl.arange(0, BLOCK_K)
    there = at < keys
    points += pair * keys * 2
    x += image * x_image + group * channels
    grad += image * keys * groups * channels + group * channels
    top, part_y = split(place(points, at, there, height, 0))
    left, part_x = split(place(points, at, there, width, 1))
    acc_y = tl.zeros([BLOCK_K], tl.float32)
    acc_x = tl.zeros([BLOCK_K], tl.float32)
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        c = tl.where(c < channels, c, -1)
        g = tl.load(
            grad + (at * groups * channels)[:, None] + c[None, :], mask=there[:, None] & (c >= 0)[None, :], other=0.0
        ).to(tl.float32)
        a, b, d, e = load_corners(x, top, left, height, width, x_row, x_column, there, c)
        above, below = a + part_x * (b - a), d + part_x * (e - d)
        acc_y += tl.sum(g * (below - above), 1)
        acc_x += tl.sum(g * (b - a + part_y * (e - d - b + a)), 1)
    of_points += pair * keys * 2 + at * 2
    tl.store(of_points, acc_y * 0.5 * (height - 1), mask=there)
    tl.store(of_points + 1, acc_x * 0.5 * (width - 1), mask=there)


@triton.jit
def hat(u):
    """The weight of a pixel at distance u in linear interpolation."""
    return tl.maximum(1 - tl.abs(u), 0.0)


@triton.jit(do_not_specialize=SIZES)
def backward_map(
    points,
    grad,
    of_x,
    groups,
    height,
    width,
    keys,
    channels,
    BLOCK_P: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes the gradient of the map for a block of pixels and of channels.

    grad (images, keys, groups, channels) and of_x (images, height, width, groups, channels) are contiguous.
    """
    blocks_c = tl.cdiv(channels, BLOCK_C)
    blocks = tl.cdiv(height * width, BLOCK_P)
    block_c, block = tl.program_id(0) % blocks_c, tl.program_id(0) // blocks_c % blocks
    pair = (tl.program_id(0) // (blocks_c * blocks)).to(tl.int64)
    image, group = pair // groups, pair % groups
    n = block * BLOCK_P + tl.arange(0, BLOCK_P)
    row, column = (n // width).to(tl.float32), (n % width).to(tl.float32)
    c = block_c * BLOCK_C + tl.arange(0, BLOCK_C)
    points += pair * keys * 2
    grad += image * keys * groups * channels + group * channels
    acc = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for start in range(0, keys, BLOCK_K):
        at = start + tl.arange(0, BLOCK_K)
        there = at < keys
        y, x = place(points, at, there, height, 0), place(points, at, there, width, 1)
        weights = hat(y[None, :] - row[:, None]) * hat(x[None, :] - column[:, None])
        from_ = grad + (at * groups * channels)[:, None] + c[None, :]
        grads = tl.load(from_, mask=there[:, None] & (c < channels)[None, :], other=0.0)
        acc = tl.dot(weights.to(grads.dtype), grads, acc, input_precision=PRECISION)
    of_x += image * height * width * groups * channels + group * channels
    to = of_x + n.to(tl.int64)[:, None] * groups * channels + c[None, :]
    tl.store(to, acc.to(of_x.dtype.element_ty), mask=(n < height * width)[:, None] & (c < channels)[None, :])
