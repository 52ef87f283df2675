# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Both attentions and the sampling as Triton kernels, and what their files share. Triton is imported on first use."""

import importlib.util
import math
import os
import shutil
import sysconfig
from pathlib import Path

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDEST = 128  # channels of a head, at most
FARTHEST = 2**31  # an image or head must span fewer numbers in memory, since kernels count with 32 bits
MOST = 2**30  # of queries and of keys in all heads of a batch, so that grids and offsets into points have 31 bits
HAS_TRITON = importlib.util.find_spec('triton') is not None


def _why_no_launcher() -> str | None:
    """Why Triton cannot compile the small module of C that launches a kernel, or None."""
    if not (os.environ.get('CC') or any(map(shutil.which, ('gcc', 'clang')))):
        return 'Triton needs a C compiler, and there is no gcc or clang, and CC is not set'
    scheme = sysconfig.get_default_scheme()  # Debian's own has another folder, where Triton does not look
    include = sysconfig.get_path('include', 'posix_prefix' if scheme == 'posix_local' else scheme)
    more = ':'.join(os.environ.get(name, '') for name in ('CPATH', 'C_INCLUDE_PATH')).split(':')
    if not any(Path(folder, 'Python.h').exists() for folder in (include, *filter(None, more))):
        return f"Triton needs Python's headers, as in the package python3-dev, and there is no {include}/Python.h"
    return None


NO_LAUNCHER = _why_no_launcher()  # found once, since a compiled graph cannot look for files


def interprets() -> bool:
    """Whether Triton interprets its kernels in Python on the CPU, as the tests have it."""
    return os.environ.get('TRITON_INTERPRET') == '1'


def _why_not_device(device: torch.device) -> str | None:
    """Why the kernels cannot run on this device, or None."""
    if interprets() and device.type == 'cpu':
        return None
    if device.type != 'cuda' or torch.version.hip:
        return f'its kernels run on a GPU of NVIDIA, not on {"ROCm" if torch.version.hip else device.type}'
    if NO_LAUNCHER:
        return NO_LAUNCHER
    properties = torch.cuda.get_device_properties(device)
    if properties.major < 8:
        return f'its kernels need compute capability 8.0, {properties.name} is older'
    return None


def why_not(*tensors: Tensor, of: int = 2) -> str | None:
    """Why the kernels cannot take these tensors, or None. The first `of` axes are images, or images and heads."""
    dtypes = {x.dtype for x in tensors}
    if len(dtypes) > 1:
        return f'it wants one dtype, not {", ".join(sorted(str(x) for x in dtypes))}'
    if tensors[0].dtype not in DTYPES:
        return f'it has no {tensors[0].dtype}'
    for x in tensors:
        if not is_near(x, of):
            return f'a tensor {tuple(x.shape)} with strides {x.stride()} is too large: 2^31 numbers or more an image'
    return _why_not_device(tensors[0].device) if HAS_TRITON else 'triton is not installed'


def is_near(x: Tensor, of: int = 2) -> bool:
    """Whether what kernels count with 32 bits lies near enough in memory. The first `of` axes are counted with 64."""
    return sum((n - 1) * step for n, step in zip(x.shape[of:], x.stride()[of:], strict=True)) < FARTHEST


def why_not_heads(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """Why the kernels of attention cannot take these q, k and v, or None."""
    if q.shape[-1] > WIDEST:
        return f'heads are {q.shape[-1]} wide, it takes {WIDEST} at most'
    if v.shape[-1] != q.shape[-1]:
        return f'v is {v.shape[-1]} wide and q {q.shape[-1]}: it wants the same'
    # The output has the heads of a query side by side in memory, whatever the strides of q.
    if math.prod(q.shape[1:]) >= FARTHEST:
        return f'q {tuple(q.shape)} is too large: 2^31 numbers or more an image'
    if any(math.prod(x.shape[:-1]) >= MOST for x in (q, k)):
        return f'q {tuple(q.shape)} or k {tuple(k.shape)} is too large: 2^30 rows or more'
    return why_not(q, k, v)


def precision() -> str:
    """How float32 products are made, by PyTorch's own setting: of tf32, or else of three tf32 for nearly all digits."""
    products = torch.backends.cuda.matmul
    try:  # the newer setting; once it has been set, reading allow_tf32 is an error
        return 'tf32' if products.fp32_precision == 'tf32' else 'tf32x3'
    except AttributeError:
        return 'tf32' if products.allow_tf32 else 'tf32x3'


def power_of_2(n: int) -> int:
    """The smallest power of 2 from n on that tl.dot takes: 16 at least."""
    return max(16, 1 << (n - 1).bit_length())


def rows(x: Tensor) -> Tensor:
    """Makes the last axis of x contiguous, and all axes where a head of x (images, heads, ...) is spread too far.

    Inputs that are spread so are refused, but the strides of a gradient are not known before the backward.
    """
    return x if x.stride(-1) == 1 and is_near(x) else x.contiguous()
