# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Checkpoints that were changed at random are read or refused in one line: no crash, no hang, no code run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.one_stack

pytest.importorskip('mmengine')

FILES = 500
SCRIPT = Path(__file__).with_name('fuzz_checkpoints.py')
ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_changed_checkpoints_are_read_or_refused(tmp_path, seen):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    command = [sys.executable, SCRIPT, tmp_path, '0', str(FILES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env={**os.environ, 'PYTHONPATH': path})
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f'{lines[-1:]}: {done.stderr[-2000:]}'
    assert len(lines) == FILES
    assert not [line for line in lines if ' ran ' in line]
    refused = sum('refused' in line for line in lines)
    assert any('read' in line for line in lines) and refused > FILES / 2
    seen(f'{FILES} checkpoints changed at random', f'{refused} refused in one line; no crash, no code run')
