# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""A CPU run keeps its memory, unless its user decided otherwise."""

import subprocess
import sys

import pytest

from dat_mm.engine.memory import VARIABLES

FAULTS = """
import resource, sys
import torch
from dat_mm.engine.memory import keep_freed_memory
if sys.argv[1] == 'keep' and not keep_freed_memory():
    sys.exit('no glibc')
def work():
    return sum((torch.ones(12_000_000) + i).sum() for i in range(3))
def count():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    work()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(min(count() for _ in range(6)))  # small pieces may lie between the large ones at first
"""


def faults(how, **environment):
    result = subprocess.run(
        [sys.executable, '-c', FAULTS, how], capture_output=True, text=True, env=environment or None
    )
    if 'no glibc' in result.stderr:
        pytest.skip('no glibc')
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc is of Linux')
def test_memory_is_not_cleared_again():
    assert faults('keep') < 100 < faults('leave')


def test_the_variables_of_malloc_have_the_last_word(monkeypatch):
    from dat_mm.engine import memory

    monkeypatch.setenv(VARIABLES[0], '1000000')
    monkeypatch.setattr(memory.ctypes, 'CDLL', lambda name: pytest.fail('it was called'))
    assert not memory.keep_freed_memory()
