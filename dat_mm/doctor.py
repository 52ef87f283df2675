# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Runs tools/doctor.py, which a wheel carries too: `python -m dat_mm.doctor`."""

import runpy
from pathlib import Path

HERE = Path(__file__).resolve().parent
TOOL = Path('tools/doctor.py')

if __name__ == '__main__':
    found = next(path for path in (HERE / '.mim' / TOOL, HERE.parent / TOOL) if path.is_file())
    runpy.run_path(str(found), run_name='__main__')
