# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""When a job script of Slurm has its run queued again, with a Slurm that only notes what it is asked."""

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.one_stack

SCRIPT = Path(__file__).parents[2] / 'tools/slurm_requeue.sh'
ENDS = {
    'wants to go on': ('exit 75', True),
    'is done': ('exit 0', False),
    'fails': ('exit 1', False),
    'is ended by srun as it leaves': ('touch "$0"; exit 143', True),
    'is ended by srun': ('exit 143', False),
    'is ended by srun with a checkpoint removed': ('rm -f "$0"; exit 143', False),
}


@pytest.mark.parametrize('before', [False, True], ids=['at first', 'when it went on'])
@pytest.mark.parametrize('end', ENDS)
def test_a_run_is_queued_again_when_it_wants_to_go_on(end, before, tmp_path):
    """The mark of an earlier start says nothing: a run that fails then would be queued again for ever."""
    ending, queued = ENDS[end]
    mark = tmp_path / 'interrupted.pth'
    if before:
        mark.touch()
        os.utime(mark, (1e9, 1e9))
    for name in ('scontrol', 'sleep'):
        (tmp_path / name).write_text(f'#!/bin/sh\necho "{name} $*"\n')
        (tmp_path / name).chmod(0o755)
    command = f"source {SCRIPT}; run_and_requeue {mark} bash -c '{ending}' {mark}"
    slurm = dict(PATH=f'{tmp_path}:{os.environ["PATH"]}', SLURM_JOB_ID='7', SLURM_JOB_NODELIST='here')
    done = subprocess.run(['bash', '-c', command], capture_output=True, text=True, env={**os.environ, **slurm})
    assert not done.stderr
    assert ('scontrol requeue 7' in done.stdout) == queued
    assert done.returncode == int(ending.split()[-1])
