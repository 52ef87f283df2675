# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Whether a call is part of a training step, of a graph that is being compiled, or of one that is being exported."""

import torch
from torch import Tensor


def _never() -> bool:
    return False


# is_compiling came with torch 2.3, is_exporting with 2.7. Before, an export has the sizes of its example.
compiling = getattr(torch.compiler, 'is_compiling', _never)
exporting = getattr(torch.compiler, 'is_exporting', compiling)


def needs_gradient(*tensors: Tensor | None) -> bool:
    """Whether what is computed from these tensors is kept for a backward pass."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
