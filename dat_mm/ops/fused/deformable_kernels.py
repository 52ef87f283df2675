# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Kernels of deformable attention. One program has a block of queries or of keys of one image and head.

The bias is never in memory. Each logit reads the four cells of the table around its place and blends them. They are
packed so that two words bring them in float32, and one in float16. Lanes run along the queries, which are neighbours in
the table for every key. Around the table is a ring of zeros, and all places further out are moved there.

`pair` is an image and a head. The n queries are in rows of `width`. y and x are places in the table, in cells.
"""

import math

import triton
import triton.language as tl

from .packing_kernels import BITS

LN_2 = tl.constexpr(math.log(2))
SIZES = [
    'heads',
    'per_group',
    'width',
    'queries',
    'keys',
    'cells_y',
    'cells_x',
    'first',
    'last',
    'splits',
]  # arguments that are not specialised: one kernel serves all their values


@triton.jit
def cells_and_parts(first, i, cells, UNIT: tl.constexpr):
    """The cell before each query along an axis, and how far beyond it the query is: for keys (k, 1), queries (1, n).

    With UNIT, queries are one cell apart, so all queries of a key are equally far beyond theirs.
    """
    if UNIT:
        cell = (first >> BITS) + i
        t = first
    else:
        t = first + i
        cell = t >> BITS
    # As an unsigned number, a cell before the ring is far behind it. Both are moved to the zeros at its end.
    cell = tl.minimum(cell.to(tl.uint32, bitcast=True), (cells + 1).to(tl.uint32)).to(tl.int32, bitcast=True)
    # Put the fraction into the last bits of a number from 1 to 2. A conversion would be eight times slower.
    part = (((t << (23 - BITS)) & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True) - 1
    return cell, part


@triton.jit
def half_words(word):
    """Splits an int32 into the two float16 in it, as float32."""
    low, high = word.to(tl.int16), (word >> 16).to(tl.int16)
    return low.to(tl.float16, bitcast=True).to(tl.float32), high.to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def words(word):
    """Splits an int64 into the two int32 in it."""
    return word.to(tl.int32), (word >> 32).to(tl.int32)


@triton.jit
def interpolate(table, keys, queries, cells_y, cells_x, HALF: tl.constexpr, UNIT: tl.constexpr):
    """The bias (n, k) for the places of queries (n,) and keys (k,), and its slopes along y and x."""
    y, x = words(keys)
    along_y, along_x = words(queries)
    y, part_y = cells_and_parts(y[None, :], along_y[:, None], cells_y, UNIT)
    x, part_x = cells_and_parts(x[None, :], along_x[:, None], cells_x, UNIT)
    pitch = cells_x + 2
    # The hint says that neighbouring queries are neighbours in the table. That is not so where a row ends or steps are
    # not 1. It only makes the lanes of a warp run along the queries: each loads one word, for no two are known to be
    # aligned. Queries come first so that the layouts of other tensors, such as keys, are not taken.
    table += tl.max_contiguous(y * pitch + x, [2, 1])
    low, high = words(tl.load(table))
    if HALF:
        a, b = half_words(low)
        c, d = half_words(high)
    else:
        a, b = low.to(tl.float32, bitcast=True), high.to(tl.float32, bitcast=True)
        low, high = words(tl.load(table + pitch))
        c, d = low.to(tl.float32, bitcast=True), high.to(tl.float32, bitcast=True)
    top, bottom = b - a, d - c
    above = a + part_x * top
    slope_y = c + part_x * bottom - above
    return above + part_y * slope_y, slope_y, top + part_y * (bottom - top)


@triton.jit(do_not_specialize=SIZES)
def forward(
    q,
    k,
    v,
    places,
    distances,
    table,
    out,
    log_sum,
    q_image,
    q_head,
    q_step,
    k_image,
    k_head,
    k_step,
    v_image,
    v_head,
    v_step,
    out_image,
    out_head,
    out_step,
    heads,
    per_group,
    queries,
    keys,
    cells_y,
    cells_x,
    scale,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TABLE: tl.constexpr,
    HALF: tl.constexpr,
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes the output of a block of queries, and the log2 of the sum of each query's powers of 2."""
    blocks = tl.cdiv(queries, BLOCK_Q)
    pair = (tl.program_id(0) // blocks).to(tl.int64)
    image, head = pair // heads, pair % heads
    n = (tl.program_id(0) % blocks) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    d, i = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_K)
    inside = (n < queries)[:, None] & (d < D)[None, :]
    q += image * q_image + head * q_head
    k += image * k_image + head * k_head
    v += image * v_image + head * v_head
    if TABLE:
        places += pair // per_group * keys
        table += head * (cells_y + 3) * (cells_x + 2)
        far = tl.load(distances + n, mask=n < queries, other=0)
    query = tl.load(q + n[:, None] * q_step + d[None, :], mask=inside, other=0.0)

    largest = tl.full([BLOCK_Q], float('-inf'), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    acc = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for start in range(0, keys, BLOCK_K):
        at = start + i
        there = at < keys
        seen = there[:, None] & (d < D)[None, :]
        if TABLE:
            place = tl.load(places + at, mask=there, other=0)
            bias, _, _ = interpolate(table, place, far, cells_y, cells_x, HALF, UNIT)
        key = tl.load(k + at[:, None] * k_step + d[None, :], mask=seen, other=0.0)
        logits = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        if TABLE:
            logits += bias
        logits = tl.where(there[None, :], logits, float('-inf'))
        new = tl.maximum(largest, tl.max(logits, 1))
        weights = tl.exp2(logits - new[:, None])
        shrink = tl.exp2(largest - new)
        largest = new
        total = total * shrink + tl.sum(weights, 1)
        value = tl.load(v + at[:, None] * v_step + d[None, :], mask=seen, other=0.0)
        acc = tl.dot(weights.to(value.dtype), value, acc * shrink[:, None], input_precision=PRECISION)

    out += image * out_image + head * out_head
    tl.store(out + n[:, None] * out_step + d[None, :], (acc / total[:, None]).to(out.dtype.element_ty), mask=inside)
    tl.store(log_sum + pair * queries + n, largest + tl.log2(total), mask=n < queries)


@triton.jit(do_not_specialize=SIZES)
def shared_part(
    grad,
    out,
    shared,
    grad_image,
    grad_head,
    grad_step,
    out_image,
    out_head,
    out_step,
    heads,
    queries,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """Writes for each query what the backward of the softmax subtracts from the gradients of all its weights."""
    blocks = tl.cdiv(queries, BLOCK_Q)
    pair = (tl.program_id(0) // blocks).to(tl.int64)
    image, head = pair // heads, pair % heads
    n = (tl.program_id(0) % blocks) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    d = tl.arange(0, BLOCK_D)
    inside = (n < queries)[:, None] & (d < D)[None, :]
    grad += image * grad_image + head * grad_head
    out += image * out_image + head * out_head
    a = tl.load(grad + n[:, None] * grad_step + d[None, :], mask=inside, other=0.0).to(tl.float32)
    b = tl.load(out + n[:, None] * out_step + d[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(shared + pair * queries + n, tl.sum(a * b, 1), mask=n < queries)


@triton.jit(do_not_specialize=SIZES)
def backward(
    q,
    k,
    v,
    places,
    distances,
    table,
    grad,
    log_sum,
    shared,
    of_logits,
    of_k,
    of_v,
    of_points,
    q_image,
    q_head,
    q_step,
    k_image,
    k_head,
    k_step,
    v_image,
    v_head,
    v_step,
    grad_image,
    grad_head,
    grad_step,
    pitch,
    pairs,
    heads,
    per_group,
    queries,
    keys,
    cells_y,
    cells_x,
    first,
    last,
    splits,
    scale,
    slope_y,
    slope_x,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TABLE: tl.constexpr,
    HALF: tl.constexpr,
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds to the gradients of k, v and points for a block of keys, from a share of the queries `first` to `last`.

    These gradients have a copy for each share: (shares, pairs, keys, D or 2). Where `first` is 0, what is in them is
    overwritten. The gradients of the logits are written too: (pairs, keys, pitch), with queries `first` to `last` along
    the last axis, and zeros behind them up to a whole block. `pitch` is a multiple of BLOCK_Q.
    """
    blocks = tl.cdiv(keys, BLOCK_K)
    block, split = tl.program_id(0) % blocks, tl.program_id(0) // blocks % splits
    pair = (tl.program_id(0) // (blocks * splits)).to(tl.int64)
    image, head = pair // heads, pair % heads
    at = block * BLOCK_K + tl.arange(0, BLOCK_K)
    there = at < keys
    d, i = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_Q)
    seen = there[:, None] & (d < D)[None, :]
    q += image * q_image + head * q_head
    grad += image * grad_image + head * grad_head
    log_sum += pair * queries
    shared += pair * queries
    key = tl.load(k + image * k_image + head * k_head + at[:, None] * k_step + d[None, :], mask=seen, other=0.0)
    value = tl.load(v + image * v_image + head * v_head + at[:, None] * v_step + d[None, :], mask=seen, other=0.0)
    of_logits += (pair * keys + at[:, None]) * pitch
    acc_k = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    acc_v = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    if TABLE:
        table += head * (cells_y + 3) * (cells_x + 2)
        place = tl.load(places + pair // per_group * keys + at, mask=there, other=0)
        acc_y = tl.zeros([BLOCK_K], tl.float32)
        acc_x = tl.zeros([BLOCK_K], tl.float32)

    size = last - first
    share = tl.cdiv(tl.cdiv(size, splits), BLOCK_Q) * BLOCK_Q
    for start in range(split * share, tl.minimum((split + 1) * share, size), BLOCK_Q):
        here = start + i
        within = here < size
        n = first + here
        inside = within[:, None] & (d < D)[None, :]
        query = tl.load(q + n[:, None] * q_step + d[None, :], mask=inside, other=0.0)
        grads = tl.load(grad + n[:, None] * grad_step + d[None, :], mask=inside, other=0.0)
        logits = tl.dot(key, tl.trans(query), input_precision=PRECISION) * scale
        if TABLE:
            far = tl.load(distances + n, mask=within, other=0)
            bias, by_y, by_x = interpolate(table, place, far, cells_y, cells_x, HALF, UNIT)
            logits += tl.trans(bias)
        # Queries behind the last one have no weight.
        weights = tl.exp2(logits - tl.load(log_sum + n, mask=within, other=float('inf'))[None, :])
        acc_v = tl.dot(weights.to(grads.dtype), grads, acc_v, input_precision=PRECISION)
        of_weights = tl.dot(value, tl.trans(grads), input_precision=PRECISION)
        delta = weights * (of_weights - tl.load(shared + n, mask=within, other=0.0)[None, :])
        if TABLE:
            acc_y += tl.sum(delta * tl.trans(by_y), 1)
            acc_x += tl.sum(delta * tl.trans(by_x), 1)
        delta = delta.to(query.dtype)
        acc_k = tl.dot(delta, query, acc_k, input_precision=PRECISION)
        tl.store(of_logits + here[None, :], delta, mask=there[:, None])

    copy = split * pairs + pair
    of_k += (copy * keys + at[:, None]) * D + d[None, :]
    of_v += (copy * keys + at[:, None]) * D + d[None, :]
    add(of_k, acc_k * (scale * LN_2), seen, first > 0)
    add(of_v, acc_v, seen, first > 0)
    if TABLE:
        of_points += (copy * keys + at) * 2
        add(of_points, acc_y * (slope_y * LN_2), there, first > 0)
        add(of_points + 1, acc_x * (slope_x * LN_2), there, first > 0)


@triton.jit
def add(pointers, numbers, mask, to_what_is_there):
    """Adds numbers to those in memory, or writes them over these."""
    numbers += tl.load(pointers, mask=mask & to_what_is_there, other=0.0)
    tl.store(pointers, numbers.to(pointers.dtype.element_ty), mask=mask)


@triton.jit
def reaching(first, step, low, high, size):
    """Which of `size` queries along an axis are from cell low - 1 to high + 1, and a few more: all if the step is 0."""
    stands = step == 0
    step += tl.where(stands, 1.0, 0.0)
    start = tl.where(stands, 0.0, tl.floor((low - 1 - first) / step) - 1)
    stop = tl.where(stands, size.to(tl.float32), tl.ceil((high + 1 - first) / step) + 2)
    start = tl.minimum(tl.maximum(start, 0.0), size.to(tl.float32))
    stop = tl.minimum(tl.maximum(stop, 0.0), size.to(tl.float32))
    return start.to(tl.int32), stop.to(tl.int32)


@triton.jit
def hat(u):
    """The weight of a cell at distance u in linear interpolation."""
    return tl.maximum(1 - tl.abs(u), 0.0)


@triton.jit(do_not_specialize=SIZES)
def table_gradient(
    of_logits,
    points,
    of_table,
    pitch,
    pairs,
    per_group,
    width,
    keys,
    cells_y,
    cells_x,
    first,
    last,
    splits,
    origin_y,
    origin_x,
    slope_y,
    slope_x,
    step_y,
    step_x,
    BLOCK_Y: tl.constexpr,
    BLOCK_X: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Adds A_y^T of_logits A_x to a tile of the table, for a share of the keys and queries in rows `first` to `last`.

    Where `first` is 0, what is in the tile is overwritten.

    of_logits (pairs, keys, pitch) begins with the query at the start of row `first`. of_table is (shares, pairs, Y, X).
    """
    tiles_x = tl.cdiv(cells_x, BLOCK_X)
    tiles = tl.cdiv(cells_y, BLOCK_Y) * tiles_x
    tile, split = tl.program_id(0) % tiles, tl.program_id(0) // tiles % splits
    pair = (tl.program_id(0) // (tiles * splits)).to(tl.int64)
    low_y, low_x = tile // tiles_x * BLOCK_Y, tile % tiles_x * BLOCK_X
    cell_y, cell_x = low_y + tl.arange(0, BLOCK_Y), low_x + tl.arange(0, BLOCK_X)
    row, column = tl.arange(0, BLOCK_H), tl.arange(0, BLOCK_W)
    points += pair // per_group * keys * 2
    of_table += (split * pairs + pair) * cells_y * cells_x + cell_y[:, None] * cells_x + cell_x[None, :]
    inside = (cell_y < cells_y)[:, None] & (cell_x < cells_x)[None, :]
    acc = tl.load(of_table, mask=inside & (first > 0), other=0.0)
    share = tl.cdiv(keys, splits)
    start, stop = split * share, tl.minimum((split + 1) * share, keys)
    next_y = tl.load(points + start * 2, mask=start < stop, other=0.0)
    next_x = tl.load(points + start * 2 + 1, mask=start < stop, other=0.0)
    for key in range(start, stop):
        y, x = origin_y + slope_y * next_y, origin_x + slope_x * next_x
        # The point of the next key arrives while this one is added.
        next_y = tl.load(points + key * 2 + 2, mask=key + 1 < stop, other=0.0)
        next_x = tl.load(points + key * 2 + 3, mask=key + 1 < stop, other=0.0)
        top, bottom = reaching(y, step_y, low_y, low_y + BLOCK_Y - 1, last)
        left, right = reaching(x, step_x, low_x, low_x + BLOCK_X - 1, width)
        for i in range(tl.maximum(top, first), bottom, BLOCK_H):
            rows = i + row
            along = tl.zeros([BLOCK_H, BLOCK_X], tl.float32)
            for j in range(left, right, BLOCK_W):
                columns = j + column
                at = (pair * keys + key) * pitch + ((rows - first) * width)[:, None] + columns[None, :]
                there = (rows < bottom)[:, None] & (columns < right)[None, :]
                grads = tl.load(of_logits + at, mask=there, other=0.0)
                hats = hat(x + columns.to(tl.float32)[:, None] * step_x - cell_x.to(tl.float32)[None, :])
                along = tl.dot(grads, hats.to(grads.dtype), along, input_precision=PRECISION)
            hats = hat(y + rows.to(tl.float32)[None, :] * step_y - cell_y.to(tl.float32)[:, None])
            acc = tl.dot(hats, along, acc, input_precision=PRECISION)
    tl.store(of_table, acc, mask=inside)
