# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Tools that an installed package has too, as `python -m dat_mm.NAME`."""

import runpy
from pathlib import Path

HERE = Path(__file__).resolve().parent


def run_tool(name: str) -> None:
    """Runs a tool as if its file was called: the one that a wheel carries, or that of the working tree."""
    tool = Path('tools', f'{name}.py')
    found = next(path for path in (HERE / '.mim' / tool, HERE.parent / tool) if path.is_file())
    runpy.run_path(str(found), run_name='__main__')
