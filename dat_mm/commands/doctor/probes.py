# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What is installed, found by running it. Standard library only, for this file is run by itself too.

`python probes.py NAME...` runs the probes of these names, and prints a line of JSON for each. A probe raises, or ends
the process, where something is wrong, so the doctor runs them in processes of their own.
"""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


class Absent(Exception):
    """Something is not there, and need not be."""


def _version(*names: str) -> str:
    """The version of the first of these distributions that is installed."""
    for name in names:
        try:
            return f'{version(name)}{f" ({name})" if name.startswith("onedl") else ""}'
        except PackageNotFoundError:
            continue
    raise Absent(f'{names[0]} is not installed')


def python() -> str:
    found = '.'.join(map(str, sys.version_info[:3]))
    if not (3, 10) <= sys.version_info[:2] <= (3, 12):
        raise RuntimeError(f'Python {found} is not 3.10, 3.11 or 3.12')
    return found


def torch() -> str:
    import torch

    (torch.ones(2, 2) @ torch.ones(2, 2)).sum().item()
    major, minor = map(int, torch.__version__.split('.')[:2])
    if (major, minor) < (2, 1):
        raise RuntimeError(f'torch {torch.__version__} is older than 2.1')
    return torch.__version__


def torchvision() -> str:
    found = _version('torchvision')
    import torch
    import torchvision

    torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    return found


def gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        if shutil.which('nvidia-smi') and subprocess.run(['nvidia-smi', '-L'], capture_output=True).returncode == 0:
            raise RuntimeError(f'there is a GPU, and torch {torch.__version__} does not see it')
        raise Absent('there is no GPU')
    torch.ones(2, device='cuda').sum().item()
    properties = torch.cuda.get_device_properties(0)
    return (
        f'{torch.cuda.device_count()} x {properties.name}, compute capability {properties.major}.{properties.minor}, '
        f'{properties.total_memory >> 30} GB, CUDA {torch.version.cuda}'
    )


def driver() -> str:
    if not shutil.which('nvidia-smi'):
        raise Absent('there is no driver of NVIDIA')
    asked = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
    done = subprocess.run(asked, capture_output=True, text=True, timeout=20)
    if done.returncode:
        raise RuntimeError(f'nvidia-smi: {(done.stderr or done.stdout).strip().splitlines()[0]}')
    return done.stdout.split()[0]


def compiler() -> str:
    """For torch.compile, Triton and mmcv: a C++17 compiler that finds Python's headers."""
    command = os.environ.get('CXX') or 'c++'
    found = shutil.which(command.split()[0])
    if found is None:
        raise RuntimeError(f'there is no {command}')
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, 'check.cpp')
        source.write_text('#include <Python.h>\n#include <optional>\nstd::optional<int> x;\n')
        include = f'-I{sysconfig.get_paths()["include"]}'
        done = subprocess.run(
            [*command.split(), '-std=c++17', include, '-c', source, '-o', Path(folder, 'check.o')],
            capture_output=True, text=True,
        )  # fmt: skip
    if done.returncode:
        raise RuntimeError(next((line for line in done.stderr.splitlines() if 'error' in line), done.stderr[:200]))
    told = subprocess.run([*command.split(), '--version'], capture_output=True, text=True).stdout
    return told.splitlines()[0] if told else found


def triton() -> str:
    found = _version('triton')
    import_module('triton.language')
    return found


def mmengine() -> str:
    found = _version('mmengine', 'onedl-mmengine')
    import_module('mmengine.runner')
    return found


def mmcv() -> str:
    found = _version('mmcv', 'onedl-mmcv', 'mmcv-lite')
    import torch
    from mmcv.ops import nms

    devices = ['cpu'] + ['cuda'] * torch.cuda.is_available()
    for device in devices:
        nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]], device=device), torch.ones(1, device=device), 0.5)
    return f'{found}, its ops run on {" and ".join(devices)}'


def _toolbox(module: str, scope: str, *names: str) -> str:
    found = _version(*names)
    import_module(f'{module}.apis')
    from mmengine.registry import MODELS, DefaultScope

    import dat_mm  # noqa: F401

    with DefaultScope.overwrite_default_scope(scope):
        MODELS.build(dict(type='dat_mm.DAT', arch='datpp-nano'))
    return f'{found}, builds dat_mm.DAT'


def mmdet() -> str:
    return _toolbox('mmdet', 'mmdet', 'mmdet', 'onedl-mmdetection')


def mmseg() -> str:
    return _toolbox('mmseg', 'mmseg', 'mmsegmentation', 'onedl-mmsegmentation')


def mmpretrain() -> str:
    return _toolbox('mmpretrain', 'mmpretrain', 'mmpretrain', 'onedl-mmpretrain')


def one_stack() -> str:
    """Upstream's packages and the forks' have the same modules, and one set writes over the other."""
    pairs = (('mmengine', 'onedl-mmengine'), ('mmcv', 'onedl-mmcv'), ('mmdet', 'onedl-mmdetection'))
    stacks = [{name for pair in pairs for name in pair[i : i + 1] if _installed(name)} for i in range(2)]
    if all(stacks):
        raise RuntimeError(f'{sorted(stacks[0])[0]} and {sorted(stacks[1])[0]} are both installed')
    if not any(stacks):
        raise Absent('neither OpenMMLab nor the OneDL forks are installed; dat_mm.ops works without')
    return 'openmmlab' if stacks[0] else 'onedl'


def _installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def cv2() -> str:
    found = _version('opencv-python-headless', 'opencv-python', 'opencv-contrib-python')
    import_module('cv2')
    return found


PROBES = {
    'Python': python,
    'torch': torch,
    'torchvision': torchvision,
    'driver': driver,
    'GPU': gpu,
    'compiler': compiler,
    'triton': triton,
    'stack': one_stack,
    'OpenCV': cv2,
    'mmengine': mmengine,
    'mmcv': mmcv,
    'mmdet': mmdet,
    'mmseg': mmseg,
    'mmpretrain': mmpretrain,
}


def _told(name: str) -> dict:
    try:
        return dict(probe=name, state='ok', told=PROBES[name]())
    except Absent as absent:
        return dict(probe=name, state='absent', told=str(absent))
    except BaseException as error:
        return dict(probe=name, state='wrong', told=f'{type(error).__name__}: {error}')


if __name__ == '__main__':
    sys.path.pop(0)  # this folder, where a module may be named as a package is
    real = os.dup(1)  # whatever the packages print goes to stderr
    os.dup2(2, 1)
    for name in sys.argv[1:]:
        os.write(real, json.dumps(_told(name)).encode() + b'\n')
