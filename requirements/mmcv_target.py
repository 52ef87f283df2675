# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What mmcv would be compiled for in this environment, as JSON: {"key", "device", "note"}. install.py asks.

The key names all that a compiled mmcv depends on. mmcv's setup.py compiles for CUDA where torch sees a GPU;
without an nvcc to do so it would stop, and CPU ops are better than none.
"""

import json
import os
import re
import subprocess
import sys
import sysconfig

import torch


def has_nvcc():
    """torch refuses an nvcc of another major version than its own."""
    from torch.utils.cpp_extension import CUDA_HOME

    found = re.search(r'release (\d+)', subprocess.getoutput(f"'{CUDA_HOME}/bin/nvcc' --version"))
    return bool(found) and found[1] == (torch.version.cuda or '').split('.')[0]


device, note = 'cpu', ''
if os.getenv('FORCE_CUDA') == '1' or (torch.cuda.is_available() and has_nvcc()):
    archs = os.getenv('TORCH_CUDA_ARCH_LIST', '')
    if not archs and torch.cuda.is_available():
        archs = '.'.join(map(str, torch.cuda.get_device_capability()))
    device = f'cuda{torch.version.cuda}-{archs}'
elif torch.cuda.is_available():
    note = f'torch sees a GPU, but there is no nvcc of CUDA {torch.version.cuda}: mmcv gets CPU ops only'

python = f'cp{sys.version_info.major}{sys.version_info.minor}'
key = f'torch-{torch.__version__}-{device}-{python}-{sysconfig.get_platform()}'
print(json.dumps({'key': re.sub(r'[^\w.+-]', '_', key), 'device': device, 'note': note}))
