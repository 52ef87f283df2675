# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The operations of the models, as functions of tensors. They need torch and nothing else.

Deformable attention, neighborhood attention and the sampling of features are meant for other models too. Attention in
windows, linear layers, depthwise convolutions and the feed-forward part of a block are here because all code for speed
is.

B batch, G groups, M heads, D head width, H x W the map, K keys.
"""

from torch import Tensor

from . import backends, grid, reference

__all__ = [
    'add_depthwise',
    'deformable_attention',
    'feed_forward',
    'linear',
    'neighborhood_attention',
    'sample_features',
    'window_attention',
]


def _check(rules):
    for holds, rule in rules:
        if not holds:
            raise ValueError(rule)


def deformable_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    points: Tensor,
    table: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    convention: str = 'datpp',
    scale: float | None = None,
    dropout: float = 0.0,
    backend: str = 'auto',
) -> Tensor:
    """Attention of a map of queries to keys at image-dependent points, with an interpolated position bias.

    q is (B, M, H, W, D), and so is the result. k and v are (B, M, K, D).
    points (B, G, K, 2) are (y, x), in [-1, 1] or beyond. The M/G heads of a group share them.
    table (M, 2T_h-1, 2T_w-1), or None, is sampled at (query position - point) / 2. Outside, it counts as zero.
    bias, or None, is added to the logits and broadcasts to (B, M, H W, K).
    convention, 'dat' or 'datpp', says where the queries are (see ops/grid.py).
    """
    grid.check_convention(convention)
    _check(((q.ndim == 5, f'q has shape {tuple(q.shape)}, not (B, M, H, W, D)'),))
    B, M, H, W, D = q.shape
    K = k.shape[-2]
    _check(
        (
            (
                k.shape == (B, M, K, D),
                f'k has shape {tuple(k.shape)}, not (B, M, K, D) of q {tuple(q.shape)}',
            ),
            (
                v.shape[:3] == (B, M, K),
                f'v has shape {tuple(v.shape)}, not (B, M, K, D) of k {tuple(k.shape)}',
            ),
            (
                points.ndim == 4 and points.shape[0] == B and points.shape[2:] == (K, 2),
                f'points have shape {tuple(points.shape)}, not (B, G, K, 2) with B={B}, K={K}',
            ),
            (M % points.shape[1] == 0, f'heads={M} is not a multiple of groups={points.shape[1]}'),
            (
                table is None or (table.ndim == 3 and table.shape[0] == M),
                f'table has shape {None if table is None else tuple(table.shape)}, not (M, 2T_h-1, 2T_w-1), M={M}',
            ),
        )
    )
    call = dict(bias=bias, convention=convention, scale=D**-0.5 if scale is None else scale, dropout=dropout)
    tensors = dict(q=q, k=k, v=v, points=points, table=table)
    return backends.choose(backends.DEFORMABLE, backend, tensors | call)(**tensors, **call)


def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    table: Tensor | None = None,
    *,
    kernel_size: int = 7,
    scale: float | None = None,
    dropout: float = 0.0,
    backend: str = 'auto',
) -> Tensor:
    """Attention of each pixel to a square of kernel_size x kernel_size pixels around it.

    At a border the square is moved inside the map. q, k, v and the result are (B, M, H, W, D), with H and W at least
    kernel_size. table (M, 2 kernel_size - 1, 2 kernel_size - 1), or None, is indexed by the displacement of the key
    from the query.
    """
    _check(((q.ndim == 5, f'q has shape {tuple(q.shape)}, not (B, M, H, W, D)'),))
    B, M, H, W, D = q.shape
    side = 2 * kernel_size - 1
    _check(
        (
            (k.shape == q.shape, f'k has shape {tuple(k.shape)}, q {tuple(q.shape)}: they must be the same'),
            (
                v.shape[:4] == q.shape[:4],
                f'v has shape {tuple(v.shape)}, q {tuple(q.shape)}: (B, M, H, W) must be the same',
            ),
            (kernel_size % 2 == 1, f'kernel_size={kernel_size} is even'),
            (min(H, W) >= kernel_size, f'a map of {H}x{W} is smaller than kernel_size={kernel_size}: pad it'),
            (
                table is None or table.shape == (M, side, side),
                f'table has shape {None if table is None else tuple(table.shape)}, not {(M, side, side)}',
            ),
        )
    )
    call = dict(kernel_size=kernel_size, scale=D**-0.5 if scale is None else scale, dropout=dropout)
    tensors = dict(q=q, k=k, v=v, table=table)
    return backends.choose(backends.NEIGHBORHOOD, backend, tensors | call)(**tensors, **call)


def sample_features(x: Tensor, points: Tensor, *, backend: str = 'auto') -> Tensor:
    """Bilinear samples (B, Hk, Wk, C) of x (B, H, W, C) at points (B, G, Hk, Wk, 2).

    Each of the G groups of points samples C/G channels. Points are (y, x), with the centres of the outermost pixels at
    -1 and 1. Beyond these pixels, x counts as zero.
    """
    _check(((x.ndim == 4, f'x has shape {tuple(x.shape)}, not (B, H, W, C)'),))
    _check(
        (
            (
                points.ndim == 5 and points.shape[0] == x.shape[0] and points.shape[-1] == 2,
                f'points have shape {tuple(points.shape)}, not (B, G, Hk, Wk, 2) with B={x.shape[0]}',
            ),
            (
                x.shape[-1] % points.shape[1] == 0,
                f'channels={x.shape[-1]} is not a multiple of groups={points.shape[1]}',
            ),
        )
    )
    return backends.choose(backends.SAMPLING, backend, dict(x=x, points=points))(x, points)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    mask: Tensor | None = None,
    *,
    dropout: float = 0.0,
    backend: str = 'auto',
) -> Tensor:
    """Attention within each window, with a bias by query and key and a mask by window, both added to the logits.

    q, k, v and the result are (B, rows, columns, M, N, D), with N pixels in a window. bias is (M, N, N), and mask is
    (rows, columns, N, N) or None.
    """
    _check(((q.ndim == 6, f'q has shape {tuple(q.shape)}, not (B, rows, columns, M, N, D)'),))
    _, rows, columns, M, N, _ = q.shape
    _check(
        (
            (k.shape == q.shape, f'k has shape {tuple(k.shape)}, q {tuple(q.shape)}: they must be the same'),
            (
                v.shape[:5] == q.shape[:5],
                f'v has shape {tuple(v.shape)}, q {tuple(q.shape)}: all but D must be the same',
            ),
            (bias.shape == (M, N, N), f'bias has shape {tuple(bias.shape)}, not {(M, N, N)}'),
            (
                mask is None or mask.shape == (rows, columns, N, N),
                f'mask has shape {None if mask is None else tuple(mask.shape)}, not {(rows, columns, N, N)}',
            ),
        )
    )
    call = dict(q=q, k=k, v=v, bias=bias, mask=mask, dropout=dropout)
    return backends.choose(backends.WINDOW, backend, call)(**call)


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str = 'none', backend: str = 'auto'
) -> Tensor:
    """A linear layer and an activation: x (..., C), weight (C_out, C), bias (C_out,), activation 'none' or 'gelu'."""
    known = reference.ACTIVATIONS
    _check(((activation in known, f'activation={activation!r} is not one of {", ".join(known)}'),))
    call = dict(x=x, weight=weight, bias=bias, activation=activation)
    return backends.choose(backends.LINEAR, backend, call)(**call)


def add_depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str = 'auto') -> Tensor:
    """The sum of a map x (B, H, W, C) and its convolution by weight (C, 1, n, n), n odd, and bias (C,)."""
    _check(((x.ndim == 4, f'x has shape {tuple(x.shape)}, not (B, H, W, C)'),))
    n = weight.shape[-1]
    _check(
        (
            (
                weight.shape == (x.shape[-1], 1, n, n) and n % 2 == 1,
                f'weight has shape {tuple(weight.shape)}, not (C, 1, n, n) with C={x.shape[-1]} and n odd',
            ),
        )
    )
    call = dict(x=x, weight=weight, bias=bias)
    return backends.choose(backends.DEPTHWISE, backend, call)(**call)


def feed_forward(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    *,
    conv_weight: Tensor | None = None,
    conv_bias: Tensor | None = None,
    backend: str = 'auto',
) -> Tensor:
    """A linear layer, GELU and a second linear layer, on each pixel of x (B, H, W, C).

    With conv_weight (C_hidden, 1, n, n), n odd, the hidden map is added to its depthwise convolution before GELU.
    """
    _check(((x.ndim == 4, f'x has shape {tuple(x.shape)}, not (B, H, W, C)'),))
    call = dict(
        x=x, weight1=weight1, bias1=bias1, weight2=weight2, bias2=bias2, conv_weight=conv_weight, conv_bias=conv_bias
    )
    return backends.choose(backends.FEED_FORWARD, backend, call)(**call)
