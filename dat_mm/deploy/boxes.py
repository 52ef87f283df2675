# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Boxes and masks in tensors of fixed numbers of rows, as graphs need them. A row without a box has the score -1.

B images, n candidates, N rows, C classes. Boxes are (left, top, right, bottom) in pixels.
"""

import torch
from torch import Tensor

NONE = -1.0  # the score of a row without a box


def take(x: Tensor, index: Tensor) -> Tensor:
    """Takes rows (B, N, ...) of x (B, n, ...) by their numbers (B, N)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[2])) if x.ndim == 3 else x.gather(1, index)


def best(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The highest scores (B, N) of (B, n), in falling order, and their places. N is `most`, or n where that is less."""
    return scores.topk(torch.sym_min(most, scores.shape[1]), dim=1)


def only_above(scores: Tensor, threshold: float) -> Tensor:
    """The scores that are above a threshold, with NONE in place of the others."""
    return torch.where(scores > threshold, scores, NONE)


def suppress(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float) -> Tensor:
    """The scores (B, n) with NONE for each box that overlaps a better one of its group and image by the threshold.

    Boxes of other groups are moved away along x and those of other images along y, so that one search does for all.
    """
    from torchvision.ops import nms

    B, n = scores.shape
    side = boxes.max().clamp(min=0) + 1
    x, y = groups * side, torch.arange(B, device=boxes.device)[:, None] * side
    moved = boxes + torch.stack((x, y.expand_as(x), x, y.expand_as(x)), -1)
    kept = nms(moved.reshape(-1, 4), scores.reshape(-1), threshold)
    stays = torch.zeros_like(scores).reshape(-1).scatter(0, kept, 1.0).reshape(B, n)
    return torch.where(stays > 0, scores, NONE)


def as_regions(boxes: Tensor) -> Tensor:
    """The boxes (B, n, 4) as rows (B n, 5) with the number of their image first, which pooling wants."""
    image = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)
    return torch.cat((image[:, None, None].expand(-1, boxes.shape[1], 1), boxes), -1).flatten(0, 1)


def paste(masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float) -> Tensor:
    """Masks (B, N, S, S) of what is in the boxes as masks (B, N, height, width) of images, as booleans.

    Each pixel interpolates between the cells of the mask, and there is nothing around it. That is a product of three
    matrices, since the interpolation along y is the same in all columns.
    """
    cells = torch.arange(masks.shape[-1], device=boxes.device, dtype=boxes.dtype)

    def hats(start: Tensor, end: Tensor, n: int) -> Tensor:
        """The shares (B, N, n, S) that the cells along an axis have in its pixels."""
        pixels = torch.arange(n, device=boxes.device, dtype=boxes.dtype) + 0.5
        place = (pixels - start[..., None]) / (end - start).clamp(min=1e-6)[..., None] * len(cells) - 0.5
        return (1 - (place[..., None] - cells).abs()).clamp(min=0)

    left, top, right, bottom = boxes.unbind(-1)
    filled = hats(top, bottom, height) @ masks @ hats(left, right, width).transpose(-2, -1)
    return filled >= threshold
