# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""`make reliability` runs the long versions of these tests, and puts what was seen into docs/reliability.md."""

import os
import platform
import time
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / 'docs/reliability.md'
BEGIN, END = '<!-- seen by make reliability -->', '<!-- end of what was seen -->'
SEEN = []


def long_version() -> bool:
    return os.environ.get('RELIABILITY') == 'full'


@pytest.fixture
def seen():
    """A function that notes what was tried, what happened, and what it took, for the table."""
    start = time.monotonic()

    def note(tried, happened):
        SEEN.append((tried, happened, f'{time.monotonic() - start:.0f}'))

    return note


def pytest_sessionfinish(session, exitstatus):
    if not (long_version() and SEEN and exitstatus == 0):
        return
    rows = [('what was done to it', 'what the run did', 's'), ('---',) * 3, *SEEN]
    lines = [f'| {" | ".join(row)} |' for row in rows]
    import torch

    versions = f'Python {platform.python_version()}, torch {torch.__version__}'
    told = f'On {time.strftime("%Y-%m-%d")}, {os.cpu_count()} CPU cores, {versions}.'
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f'{before}{BEGIN}\n\n' + '\n'.join(lines) + f'\n\n{told}\n\n{END}{rest.partition(END)[2]}')
