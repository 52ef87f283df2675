# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The table of docs/reliability.md: what was done to trainings, as the tests of `make reliability` note it."""

import os
import platform
import time
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[1] / 'docs/reliability.md'
BEGIN, END = '<!-- seen by make reliability -->', '<!-- end of what was seen -->'
ROWS = []


def long_version() -> bool:
    return os.environ.get('RELIABILITY') == 'full'


@pytest.fixture
def seen():
    """A function that notes what was tried and what happened; the table has the seconds of the test beside it."""
    start = time.monotonic()

    def note(tried, happened):
        ROWS.append((tried, happened, f'{time.monotonic() - start:.0f}'))

    return note


def write_table():
    """Puts what was noted into the page."""
    rows = [('what was done to it', 'what the run did', 's'), ('---',) * 3, *ROWS]
    lines = [f'| {" | ".join(row)} |' for row in rows]
    versions = f'Python {platform.python_version()}, torch {torch.__version__}'
    told = f'On {time.strftime("%Y-%m-%d")}, {os.cpu_count()} CPU cores, {versions}.'
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f'{before}{BEGIN}\n\n' + '\n'.join(lines) + f'\n\n{told}\n\n{END}{rest.partition(END)[2]}')
