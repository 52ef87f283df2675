# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Does an environment hold one whole stack? `python requirements/check.py STACK`; install.py runs it last."""

import importlib
import sys
import warnings
from importlib.metadata import distributions
from pathlib import Path

# mmcv.ops loads the compiled mmcv._ext; the three apis pull in nearly everything else
MODULES = ('cv2', 'torchvision', 'mmengine', 'mmcv.ops', 'mmdet.apis', 'mmseg.apis', 'mmpretrain.apis')


def find_problems(stack):
    here = Path(__file__).resolve().parent
    installed = {dist.metadata['Name'].lower().replace('_', '-'): dist.version for dist in distributions()}
    for file in ('openmmlab', 'onedl'):
        for line in (here / f'{file}.txt').read_text().splitlines():
            name, _, version = line.partition('==')
            if version and file == stack and installed.get(name) != version:
                yield f'{line} should be installed, {installed.get(name)} is'
            if version and file != stack and 'mm' in name and name in installed:
                yield f'{name} is installed beside the {stack} stack: both write to the same folders'
    if 'opencv-python' in installed:
        yield 'opencv-python is installed: it overwrites opencv-python-headless and needs a system libGL'
    for name in MODULES:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever an import may raise is what we are here to report
            yield f'import {name}: {type(error).__name__}: {error}'


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    problems = list(find_problems(sys.argv[1]))
    print(*(problems or [f'   {", ".join(MODULES)}: fine']), sep='\n')
    sys.exit(bool(problems))
