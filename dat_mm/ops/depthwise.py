# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""A map plus a depthwise convolution of it, as one convolution: adding the map is adding 1 to the middle of the kernel.

That spares a pass over the map. An exported graph then has no sum of maps in two layouts, which other runtimes copy.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .tracing import autocast_dtype, exporting


def add_depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    reach = weight.shape[-1] // 2
    weight = weight + F.pad(weight.new_ones(1, 1, 1, 1), [reach] * 4)
    return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, padding=reach, groups=len(weight)).permute(0, 2, 3, 1)


def why_not(x: Tensor, weight: Tensor, **call) -> str | None:
    if x.device.type != 'cpu' and not exporting():
        return f'on {x.device.type} a convolution may round the map, as to TF32'
    dtype = autocast_dtype(x.device.type) or weight.dtype
    if dtype not in (torch.float32, torch.float64):
        return f'in {dtype} little would be left of a weight beside 1'
    return None
