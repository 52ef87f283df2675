# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The feed-forward part of a block, made for a few images or for a band of rows at a time.

The map between its two linear layers is the widest of a network, four times as wide as the input. In parts, on a CPU in
inference, it stays in the caches and needs no new memory.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import depthwise, onednn, reference
from .remaking import cheaply
from .tracing import compiling

IN_CACHE = 12 << 20  # bytes of the map between the layers, for one part


def bands(x: Tensor, bytes_of_a_row: int, reach: int):
    """Four slices for each part of a map (B, H, W, C): images, rows to read, which of these to keep, rows to write.

    A band reads `reach` rows more on either side than it writes, unless the map ends there.
    """
    B, H = x.shape[:2]
    rows = max(1, IN_CACHE // max(bytes_of_a_row, 1))
    if rows >= H or not B:
        images = max(1, rows // H)
        for first in range(0, max(B, 1), images):
            yield slice(first, first + images), slice(0, H), slice(0, H), slice(0, H)
        return
    for image in range(B):
        for top in range(0, H, rows):
            bottom, first = min(top + rows, H), max(top - reach, 0)
            inside = slice(top - first, bottom - first)
            yield slice(image, image + 1), slice(first, bottom + reach), inside, slice(top, bottom)


def feed_forward(x: Tensor, weight1, bias1, weight2, bias2, conv_weight, conv_bias) -> Tensor:
    weights = weight1, bias1, weight2, bias2, conv_weight, conv_bias
    bytes_of_a_row = x.shape[2] * len(weight1) * x.element_size()
    reach = 0 if conv_weight is None else conv_weight.shape[-1] // 2
    out = None
    for images, read, kept, written in bands(x, bytes_of_a_row, reach):
        part = layers(x[images, read], *weights, kept=kept)
        if part.shape[:2] == x.shape[:2]:
            return part
        if out is None:
            out = part.new_empty(*x.shape[:-1], part.shape[-1])
        out[images, written] = part
    return out


def layers(x: Tensor, weight1, bias1, weight2, bias2, conv_weight, conv_bias, *, kept: slice = slice(None)) -> Tensor:
    """The feed-forward part at once, with oneDNN for each linear layer that it can take.

    What lies outside the rows that are kept has been read once the convolution is done.
    """
    if conv_weight is None:
        x = layer(x, weight1, bias1, 'gelu')
    else:
        x = convolve(layer(x, weight1, bias1, 'none'), conv_weight, conv_bias)
        x = cheaply(F.gelu, x[:, kept])
    return layer(x, weight2, bias2, 'none')


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The sum of a map (B, H, W, C) and its depthwise convolution, in new memory for one of the two at most."""
    if not depthwise.why_not(x=x, weight=weight):
        return depthwise.add_depthwise(x, weight, bias)
    x = x.permute(0, 3, 1, 2)
    return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight)).add_(x).permute(0, 2, 3, 1)


def layer(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    call = dict(x=x, weight=weight, bias=bias, activation=activation)
    return (reference if onednn.why_not(**call) else onednn).linear(**call)


def why_not(x: Tensor, **call) -> str | None:
    if torch.is_grad_enabled():
        return 'it keeps nothing for gradients'
    if compiling():
        return 'a compiler sees the whole map'
    return None


def is_faster(x: Tensor, **call) -> bool:
    return x.device.type == 'cpu'
