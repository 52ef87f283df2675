# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Whether a call is part of a training step, under autocast, in a graph that is being compiled or being exported."""

import torch
from torch import Tensor


def _never() -> bool:
    return False


# is_compiling came with torch 2.3, is_exporting with 2.7. Before, an export has the sizes of its example.
compiling = getattr(torch.compiler, 'is_compiling', _never)
exporting = getattr(torch.compiler, 'is_exporting', compiling)
only_exporting = getattr(torch.compiler, 'is_exporting', _never)  # never in a PyTorch that cannot tell

try:
    from torch._higher_order_ops.while_loop import while_loop  # a loop that stays one in an exported graph
except ImportError:  # as above
    while_loop = None


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether what is computed from these tensors is kept for a backward pass."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype of autocast on a type of device, or None where it is off."""
    if hasattr(torch, 'get_autocast_dtype'):  # since torch 2.4
        return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
    if device_type == 'cpu':
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None
