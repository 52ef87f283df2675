# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""One cluster of two nodes for all tests of this folder."""

import shutil
import tempfile
from pathlib import Path

import pytest
from noted import seen  # noqa: F401
from slurm.cluster import Cluster, why_not


@pytest.fixture(scope='session')
def cluster():
    reason = why_not()
    if reason:
        pytest.skip(f'no Slurm: {reason}')
    folder = Path(tempfile.mkdtemp(prefix='slurm-'))  # short, since there are sockets in it
    with Cluster(folder) as running:
        yield running
    shutil.rmtree(folder, ignore_errors=True)
