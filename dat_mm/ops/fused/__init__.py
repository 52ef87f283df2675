# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Both attentions and the sampling as Triton kernels. Triton itself is imported when the first of them runs."""

import importlib.util
import os

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDEST = 128  # head
HAS_TRITON = importlib.util.find_spec('triton') is not None


def interprets() -> bool:
    """Whether Triton runs its kernels in Python, on the CPU, for tests."""
    return os.environ.get('TRITON_INTERPRET') == '1'


def _why_not_device(device: torch.device) -> str | None:
    if device.type != 'cuda':
        return None if interprets() else f'its kernels run on a GPU, not on {device.type}'
    if torch.version.hip is None and torch.cuda.get_device_properties(device).major < 8:
        return f'its kernels need compute capability 8.0, {torch.cuda.get_device_name(device)} is older'
    return None


def why_not(*tensors: Tensor) -> str | None:
    """Of tensors in the dtype of the calculation."""
    dtypes = {x.dtype for x in tensors}
    if len(dtypes) > 1:
        return f'it wants one dtype, not {", ".join(sorted(str(x) for x in dtypes))}'
    if tensors[0].dtype not in DTYPES:
        return f'it has no {tensors[0].dtype}'
    if not HAS_TRITON:
        return 'triton is not installed'
    return _why_not_device(tensors[0].device)


def why_not_heads(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    if q.shape[-1] > WIDEST:
        return f'heads are {q.shape[-1]} wide, it takes {WIDEST} at most'
    if v.shape[-1] != q.shape[-1]:
        return f'v is {v.shape[-1]} wide and q {q.shape[-1]}: it wants the same'
    return why_not(q, k, v)


def precision() -> str:
    """Of products in float32: as PyTorch's own, float32 being three products of tf32."""
    return 'tf32' if torch.backends.cuda.matmul.allow_tf32 else 'tf32x3'


def power_of_2(n: int) -> int:
    """The first one from n on that a product takes."""
    return max(16, 1 << (n - 1).bit_length())


def rows(x: Tensor) -> Tensor:
    """x with its last axis in one piece."""
    return x if x.stride(-1) == 1 else x.contiguous()
