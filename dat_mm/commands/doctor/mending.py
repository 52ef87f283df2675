# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The line that mends what is wrong with an installation, by what the error says. docs/install.md tells why."""

import re

# The first that is found in the error counts.
MENDS = {
    r"No module named 'mmcv\._ext'": 'pip uninstall mmcv mmcv-lite; '
    "pip install --no-build-isolation --no-cache-dir 'mmcv==2.1.0'",
    r'_ext\S*: undefined symbol': 'pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps '
    "'mmcv==2.1.0'",
    r"No module named 'pkg_resources'": "pip install 'setuptools<81'",
    r'libGL\.so\.1': "pip uninstall opencv-python opencv-python-headless; pip install 'opencv-python-headless<5'",
    r'operator torchvision::nms does not exist': 'pip install --force-reinstall torch torchvision, from one index',
    r'MMCV==\S+ is used but incompatible': "pip install --no-build-isolation --no-cache-dir 'mmcv==2.1.0'",
    r"No module named 'ftfy'": 'pip install ftfy',
    r'is not in the \S*\s?.*registry': 'pip install -e . in a clone of dat_mm',
    r'nms_impl: implementation for device cuda': 'FORCE_CUDA=1 pip install --no-build-isolation --no-cache-dir '
    "--force-reinstall --no-deps 'mmcv==2.1.0', where nvcc is",
    r'and torch \S+ does not see it': 'install a torch for the CUDA of the driver: python -m torch.utils.collect_env '
    'names both',
    r'Python\.h': "install Python's headers (Debian: apt install python3-dev)",
    r'there is no (\S+)$': 'install a C++ compiler (Debian: apt install g++)',
    r'are both installed': 'pip uninstall one of the two sets, then install the other again, or make setup',
    r'numpy.*(1\.x|compiled using NumPy)': "pip install 'numpy<2' or packages that are compiled for NumPy 2",
    r'is not 3\.10, 3\.11 or 3\.12': 'make setup PYTHON=python3.11',
    r'is older than 2\.1': "pip install 'torch>=2.1' torchvision",
    r"No module named '(\w+)'": r'pip install \1',
}


def mend(error: str) -> str:
    """What to type against an error, or where to read on."""
    for pattern, line in MENDS.items():
        found = re.search(pattern, error)
        if found:
            return found.expand(line) if found.groups() else line
    return 'docs/install.md, under Errors'
