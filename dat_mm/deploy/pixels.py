# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What is done to pixels before a network, as a part of the graph or as numbers beside it."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.layout import round_up


class Preprocessing(NamedTuple):
    """What a model expects of RGB pixels from 0 to 255."""

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    bgr: bool = False  # the channels are turned round first; mean and std are in the order that the model has
    divisor: int = 1  # sides are padded to a multiple of it, with what the mean is normalised to

    def arrays(self, images: np.ndarray) -> np.ndarray:
        """Does to images (B, H, W, 3) of numpy what Pixels does in a graph, but for the padding."""
        x = images[..., ::-1] if self.bgr else images
        x = (x.astype(np.float32) - np.float32(self.mean)) / np.float32(self.std)
        return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


class Pixels(nn.Module):
    """Turns images (B, H, W, 3) of bytes, in RGB, into the maps (B, 3, H', W') that a model gets."""

    def __init__(self, preprocessing: Preprocessing):
        super().__init__()
        self.bgr = preprocessing.bgr
        for name in ('mean', 'std'):
            self.register_buffer(name, torch.tensor(getattr(preprocessing, name)).view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        x = images.permute(0, 3, 1, 2).to(self.mean.dtype)
        if self.bgr:
            x = x.flip(1)
        return (x - self.mean) / self.std


def pad(x: Tensor, divisor: int) -> Tensor:
    """Pads normalised images (B, C, H, W) with zeros on the right and below to multiples of the divisor."""
    if divisor == 1:
        return x
    H, W = x.shape[2:]
    return F.pad(x, (0, round_up(W, divisor) - W, 0, round_up(H, divisor) - H))
