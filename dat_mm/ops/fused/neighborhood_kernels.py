# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Kernels of neighborhood attention. One program has a tile of queries, or of keys, of one image and head.

With 7x7 neighborhoods, a tile of 8x8 queries sees keys in a square of 14x14. Products are made with all of these keys,
and those that a query does not see are masked. That is four times the arithmetic, on matrix units that are waiting
anyway.

`pair` is an image and a head.
"""

import triton
import triton.language as tl

SIZES = ['heads', 'height', 'width']  # arguments that are not specialised: one kernel serves all their values
LEAST = tl.constexpr(-1e30)  # stands for the largest logit where there is none yet


@triton.jit
def start_of(i, size, KERNEL: tl.constexpr):
    """Where the neighborhood of query i begins along an axis. At the borders it is moved inside."""
    return tl.minimum(tl.maximum(i - KERNEL // 2, 0), size - KERNEL)


@triton.jit
def tile_of(heads, height, width, TILE: tl.constexpr):
    """The pair, image and head of this program, and the first row and column of its tile."""
    tiles_x = tl.cdiv(width, TILE)
    tiles = tl.cdiv(height, TILE) * tiles_x
    pair, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    return pair, pair // heads, pair % heads, tile // tiles_x * TILE, tile % tiles_x * TILE


@triton.jit
def bias_of(table, y, x, key_y, key_x, height, width, TABLE: tl.constexpr, KERNEL: tl.constexpr):
    """The bias of queries at y, x and keys at key_y, key_x, which broadcast. It is -inf where a key is not seen.

    Made before the product of queries and keys, it does not hold up the softmax of what that gives.
    """
    # A query outside the map is treated as if it were at the border, to stay within the table.
    y, x = tl.minimum(y, height - 1), tl.minimum(x, width - 1)
    start_y, start_x = start_of(y, height, KERNEL), start_of(x, width, KERNEL)
    seen = (key_y >= start_y) & (key_y < start_y + KERNEL) & (key_x >= start_x) & (key_x < start_x + KERNEL)
    if TABLE:
        at = (key_y - y + KERNEL - 1) * (2 * KERNEL - 1) + key_x - x + KERNEL - 1
        return tl.load(table + at, mask=seen, other=float('-inf'))
    else:
        return tl.where(seen, 0.0, float('-inf'))


@triton.jit(do_not_specialize=SIZES)
def forward(
    q,
    k,
    v,
    table,
    out,
    log_sum,
    q_image,
    q_head,
    q_row,
    q_column,
    k_image,
    k_head,
    k_row,
    k_column,
    v_image,
    v_head,
    v_row,
    v_column,
    out_image,
    out_head,
    out_row,
    out_column,
    heads,
    height,
    width,
    scale,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KERNEL: tl.constexpr,
    TABLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes the output of a tile of queries, and the log2 of the sum of each query's powers of 2."""
    pair, image, head, top, left = tile_of(heads, height, width, TILE)
    n, i, d = tl.arange(0, TILE * TILE), tl.arange(0, ROWS * COLUMNS), tl.arange(0, BLOCK_D)
    y, x = top + n // TILE, left + n % TILE
    within = (y < height) & (x < width)
    inside = within[:, None] & (d < D)[None, :]
    q += image * q_image + head * q_head
    k += image * k_image + head * k_head
    v += image * v_image + head * v_head
    table += head * (2 * KERNEL - 1) * (2 * KERNEL - 1)
    query = tl.load(q + (y * q_row + x * q_column)[:, None] + d[None, :], mask=inside, other=0.0)

    largest = tl.full([TILE * TILE], LEAST, tl.float32)
    total = tl.zeros([TILE * TILE], tl.float32)
    acc = tl.zeros([TILE * TILE, BLOCK_D], tl.float32)
    first_y, key_x = start_of(top, height, KERNEL), start_of(left, width, KERNEL) + i % COLUMNS
    for row in range(0, TILE + KERNEL - 1, ROWS):
        key_y = first_y + row + i // COLUMNS
        there = ((key_y < height) & (key_x < width))[:, None] & (d < D)[None, :]
        key = tl.load(k + (key_y * k_row + key_x * k_column)[:, None] + d[None, :], mask=there, other=0.0)
        bias = bias_of(table, y[:, None], x[:, None], key_y[None, :], key_x[None, :], height, width, TABLE, KERNEL)
        logits = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale + bias
        new = tl.maximum(largest, tl.max(logits, 1))
        weights = tl.exp2(logits - new[:, None])
        shrink = tl.exp2(largest - new)
        largest = new
        total = total * shrink + tl.sum(weights, 1)
        value = tl.load(v + (key_y * v_row + key_x * v_column)[:, None] + d[None, :], mask=there, other=0.0)
        acc = tl.dot(weights.to(value.dtype), value, acc * shrink[:, None], input_precision=PRECISION)

    out += image * out_image + head * out_head
    at = (y * out_row + x * out_column)[:, None] + d[None, :]
    total = tl.where(within, total, 1.0)
    tl.store(out + at, (acc / total[:, None]).to(out.dtype.element_ty), mask=inside)
    tl.store(log_sum + (pair * height + y) * width + x, largest + tl.log2(total), mask=within)


@triton.jit(do_not_specialize=SIZES)
def backward_queries(
    q,
    k,
    v,
    table,
    grad,
    log_sum,
    shared,
    of_q,
    of_logits,
    q_image,
    q_head,
    q_row,
    q_column,
    k_image,
    k_head,
    k_row,
    k_column,
    v_image,
    v_head,
    v_row,
    v_column,
    grad_image,
    grad_head,
    grad_row,
    grad_column,
    of_q_image,
    of_q_head,
    of_q_row,
    of_q_column,
    heads,
    height,
    width,
    scale,
    factor,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KERNEL: tl.constexpr,
    TABLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes the gradient of q for a tile of queries, and with a table the gradients of their logits.

    Those are (pairs, y, row of the neighborhood, x, column of the neighborhood).
    """
    pair, image, head, top, left = tile_of(heads, height, width, TILE)
    n, i, d = tl.arange(0, TILE * TILE), tl.arange(0, ROWS * COLUMNS), tl.arange(0, BLOCK_D)
    y, x = top + n // TILE, left + n % TILE
    within = (y < height) & (x < width)
    inside = within[:, None] & (d < D)[None, :]
    q += image * q_image + head * q_head
    k += image * k_image + head * k_head
    v += image * v_image + head * v_head
    grad += image * grad_image + head * grad_head
    table += head * (2 * KERNEL - 1) * (2 * KERNEL - 1)
    query = tl.load(q + (y * q_row + x * q_column)[:, None] + d[None, :], mask=inside, other=0.0)
    grads = tl.load(grad + (y * grad_row + x * grad_column)[:, None] + d[None, :], mask=inside, other=0.0)
    at = (pair * height + y) * width + x
    sums = tl.load(log_sum + at, mask=within, other=float('inf'))[:, None]
    loss = tl.load(shared + at, mask=within, other=0.0)[:, None]

    acc = tl.zeros([TILE * TILE, BLOCK_D], tl.float32)
    start_y, start_x = start_of(y, height, KERNEL)[:, None], start_of(x, width, KERNEL)[:, None]
    of_logits += (((pair * height + y) * KERNEL * width + x) * KERNEL)[:, None]
    first_y, key_x = start_of(top, height, KERNEL), start_of(left, width, KERNEL) + i % COLUMNS
    for row in range(0, TILE + KERNEL - 1, ROWS):
        key_y = first_y + row + i // COLUMNS
        there = ((key_y < height) & (key_x < width))[:, None] & (d < D)[None, :]
        key = tl.load(k + (key_y * k_row + key_x * k_column)[:, None] + d[None, :], mask=there, other=0.0)
        value = tl.load(v + (key_y * v_row + key_x * v_column)[:, None] + d[None, :], mask=there, other=0.0)
        bias = bias_of(table, y[:, None], x[:, None], key_y[None, :], key_x[None, :], height, width, TABLE, KERNEL)
        logits = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale + bias
        of_weights = tl.dot(grads, tl.trans(value), input_precision=PRECISION)
        delta = (tl.exp2(logits - sums) * (of_weights - loss)).to(query.dtype)
        acc = tl.dot(delta, key, acc, input_precision=PRECISION)
        if TABLE:
            slot_y, slot_x = key_y[None, :] - start_y, key_x[None, :] - start_x
            seen = (slot_y >= 0) & (slot_y < KERNEL) & (slot_x >= 0) & (slot_x < KERNEL)
            tl.store(of_logits + (slot_y * width * KERNEL + slot_x), delta, mask=seen & within[:, None])

    of_q += image * of_q_image + head * of_q_head + (y * of_q_row + x * of_q_column)[:, None] + d[None, :]
    tl.store(of_q, (acc * factor).to(of_q.dtype.element_ty), mask=inside)


@triton.jit
def queries_of(first, size, TILE: tl.constexpr, KERNEL: tl.constexpr):
    """The range of queries along an axis whose neighborhoods, moved inside at borders, reach the tile at `first`."""
    low = tl.where(first < KERNEL, 0, first - KERNEL // 2)
    last = first + TILE - 1
    high = tl.where(last >= size - KERNEL, size, last + KERNEL // 2 + 1)
    return low, tl.minimum(high, size)


@triton.jit(do_not_specialize=SIZES)
def backward_keys(
    q,
    k,
    v,
    table,
    grad,
    log_sum,
    shared,
    of_k,
    of_v,
    q_image,
    q_head,
    q_row,
    q_column,
    k_image,
    k_head,
    k_row,
    k_column,
    v_image,
    v_head,
    v_row,
    v_column,
    grad_image,
    grad_head,
    grad_row,
    grad_column,
    of_image,
    of_head,
    of_row,
    of_column,
    heads,
    height,
    width,
    scale,
    factor,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KERNEL: tl.constexpr,
    TABLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes the gradients of k and v for a tile of keys. Both have the same strides."""
    pair, image, head, top, left = tile_of(heads, height, width, TILE)
    n, i, d = tl.arange(0, TILE * TILE), tl.arange(0, ROWS * COLUMNS), tl.arange(0, BLOCK_D)
    key_y, key_x = top + n // TILE, left + n % TILE
    there = ((key_y < height) & (key_x < width))[:, None] & (d < D)[None, :]
    q += image * q_image + head * q_head
    k += image * k_image + head * k_head
    v += image * v_image + head * v_head
    grad += image * grad_image + head * grad_head
    table += head * (2 * KERNEL - 1) * (2 * KERNEL - 1)
    key = tl.load(k + (key_y * k_row + key_x * k_column)[:, None] + d[None, :], mask=there, other=0.0)
    value = tl.load(v + (key_y * v_row + key_x * v_column)[:, None] + d[None, :], mask=there, other=0.0)
    acc_k = tl.zeros([TILE * TILE, BLOCK_D], tl.float32)
    acc_v = tl.zeros([TILE * TILE, BLOCK_D], tl.float32)

    low_y, high_y = queries_of(top, height, TILE, KERNEL)
    low_x, high_x = queries_of(left, width, TILE, KERNEL)
    across = tl.cdiv(high_x - low_x, COLUMNS)
    for step in range(0, tl.cdiv(high_y - low_y, ROWS) * across):
        y = low_y + step // across * ROWS + i // COLUMNS
        x = low_x + step % across * COLUMNS + i % COLUMNS
        within = (y < high_y) & (x < high_x)
        inside = within[:, None] & (d < D)[None, :]
        query = tl.load(q + (y * q_row + x * q_column)[:, None] + d[None, :], mask=inside, other=0.0)
        grads = tl.load(grad + (y * grad_row + x * grad_column)[:, None] + d[None, :], mask=inside, other=0.0)
        at = (pair * height + y) * width + x
        sums = tl.load(log_sum + at, mask=within, other=float('inf'))[None, :]
        loss = tl.load(shared + at, mask=within, other=0.0)[None, :]
        bias = bias_of(table, y[None, :], x[None, :], key_y[:, None], key_x[:, None], height, width, TABLE, KERNEL)
        logits = tl.dot(key, tl.trans(query), input_precision=PRECISION) * scale + bias
        weights = tl.exp2(logits - sums)
        acc_v = tl.dot(weights.to(grads.dtype), grads, acc_v, input_precision=PRECISION)
        delta = weights * (tl.dot(value, tl.trans(grads), input_precision=PRECISION) - loss)
        acc_k = tl.dot(delta.to(query.dtype), query, acc_k, input_precision=PRECISION)

    at = image * of_image + head * of_head + (key_y * of_row + key_x * of_column)[:, None] + d[None, :]
    tl.store(of_k + at, (acc_k * factor).to(of_k.dtype.element_ty), mask=there)
    tl.store(of_v + at, acc_v.to(of_v.dtype.element_ty), mask=there)
