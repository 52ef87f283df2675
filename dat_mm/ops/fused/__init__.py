# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Both attentions and the sampling as Triton kernels. Triton itself is imported when the first of them runs."""

import importlib.util
import os
import shutil

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDEST = 128  # head
FARTHEST = 2**31  # numbers of an image or head from its first to its last: kernels count with 32 bits
HAS_TRITON = importlib.util.find_spec('triton') is not None
HAS_COMPILER = bool(os.environ.get('CC') or any(map(shutil.which, ('gcc', 'clang'))))  # of C: Triton needs one


def interprets() -> bool:
    """Whether Triton runs its kernels in Python, on the CPU, for tests."""
    return os.environ.get('TRITON_INTERPRET') == '1'


def _why_not_device(device: torch.device) -> str | None:
    if interprets() and device.type == 'cpu':
        return None
    if device.type != 'cuda' or torch.version.hip:
        return f'its kernels run on a GPU of NVIDIA, not on {"ROCm" if torch.version.hip else device.type}'
    if not HAS_COMPILER:
        return 'Triton needs a C compiler, and there is no gcc or clang, and CC is not set'
    properties = torch.cuda.get_device_properties(device)
    if properties.major < 8:
        return f'its kernels need compute capability 8.0, {properties.name} is older'
    return None


def why_not(*tensors: Tensor, of: int = 2) -> str | None:
    """Of tensors in the dtype of the calculation, whose first axes are images, and heads if there are two."""
    dtypes = {x.dtype for x in tensors}
    if len(dtypes) > 1:
        return f'it wants one dtype, not {", ".join(sorted(str(x) for x in dtypes))}'
    if tensors[0].dtype not in DTYPES:
        return f'it has no {tensors[0].dtype}'
    for x in tensors:
        if sum((n - 1) * step for n, step in zip(x.shape[of:], x.stride()[of:], strict=True)) >= FARTHEST:
            return f'a tensor {tuple(x.shape)} with strides {x.stride()} is too large: 2^31 numbers or more an image'
    return _why_not_device(tensors[0].device) if HAS_TRITON else 'triton is not installed'


def why_not_heads(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    if q.shape[-1] > WIDEST:
        return f'heads are {q.shape[-1]} wide, it takes {WIDEST} at most'
    if v.shape[-1] != q.shape[-1]:
        return f'v is {v.shape[-1]} wide and q {q.shape[-1]}: it wants the same'
    return why_not(q, k, v)


def precision() -> str:
    """Of products in float32: as PyTorch's own, float32 being three products of tf32."""
    products = torch.backends.cuda.matmul
    try:  # newer than allow_tf32, which must not be read once this has been set
        return 'tf32' if products.fp32_precision == 'tf32' else 'tf32x3'
    except AttributeError:
        return 'tf32' if products.allow_tf32 else 'tf32x3'


def power_of_2(n: int) -> int:
    """The first one from n on that a product takes."""
    return max(16, 1 << (n - 1).bit_length())


def rows(x: Tensor) -> Tensor:
    """x with its last axis in one piece."""
    return x if x.stride(-1) == 1 else x.contiguous()
