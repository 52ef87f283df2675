# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Runs tools/export.py, which a wheel carries too: `python -m dat_mm.export`."""

from .tool import run_tool

if __name__ == '__main__':
    run_tool('export')
