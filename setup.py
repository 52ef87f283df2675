# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""A wheel and an editable install both carry dat_mm/.mim, where MIM looks for configs and tools."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM = ('configs', 'tools', 'model-index.yml')

# What both stacks need beside their five packages. mmengine needs setuptools < 81, and mmseg ftfy.
COMMON = ['torchvision', 'opencv-python<5', 'ftfy', 'regex', 'setuptools<81']


class BuildWithMim(build_py):
    """Adds dat_mm/.mim, with copies in a wheel and with links into the working tree in an editable install."""

    def run(self):
        super().run()
        mim = (ROOT if self.editable_mode else Path(self.build_lib)) / 'dat_mm' / '.mim'
        shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir(parents=True)
        for name in MIM:
            source, target = ROOT / name, mim / name
            if self.editable_mode:
                target.symlink_to(Path('..', '..', name), target_is_directory=source.is_dir())
            elif source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__', '*.py[cod]'))
            elif source.is_file():
                shutil.copy2(source, target)


def read(name):
    path = ROOT / name
    return path.read_text(encoding='utf-8') if path.is_file() else ''


setup(
    name='dat-mm',
    version=re.search(r"^__version__ = '(.+)'$", read('dat_mm/version.py'), re.MULTILINE)[1],
    description='The DAT and DAT++ vision backbones for OpenMMLab',
    long_description=read('README.md'),
    long_description_content_type='text/markdown',
    author='The dat_mm authors',
    license='Apache-2.0',
    license_files=['LICENSE'],
    classifiers=[
        'License :: OSI Approved :: Apache Software License',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    packages=find_packages(include=['dat_mm', 'dat_mm.*']),
    include_package_data=True,
    python_requires='>=3.10,<3.13',
    # mmengine comes under either of two names, so only the extras ask for it
    install_requires=['torch>=2.1', 'numpy', 'safetensors'],
    extras_require={
        'openmmlab': [
            'mmengine>=0.10.7,<0.11',
            'mmcv>=2.1.0,<2.2',
            'mmdet>=3.3.0,<3.4',
            'mmsegmentation>=1.2.2,<1.3',
            'mmpretrain>=1.2.0,<1.3',
            *COMMON,
        ],
        'onedl': [
            'onedl-mmengine>=0.10.12,<0.11',
            'onedl-mmcv>=2.3.6,<2.4',
            'onedl-mmdetection>=3.5.1,<3.6',
            'onedl-mmsegmentation>=1.4.2,<1.5',
            'onedl-mmpretrain>=1.3.6,<1.4',
            *COMMON,
        ],
        'deploy': ['torch>=2.9', 'onnx>=1.18', 'onnxscript>=0.5', 'onnxruntime>=1.22', 'openvino>=2025.2'],
        'panoptic': ['panopticapi-lite'],  # for COCO's panoptic annotations
    },
    cmdclass={'build_py': BuildWithMim},
    zip_safe=False,
)
