# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""`make reliability` runs the long versions of these tests and of those with Slurm, and writes down what was seen."""

from noted import ROWS, long_version, seen, write_table  # noqa: F401


def pytest_sessionfinish(session, exitstatus):
    if long_version() and ROWS and exitstatus == 0:
        write_table()
