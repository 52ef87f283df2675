# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What tools/reproduce.py does: it measures the rows of a table of results, and trains them first where asked to."""

from .reproduce import reproduce

__all__ = ['reproduce']
