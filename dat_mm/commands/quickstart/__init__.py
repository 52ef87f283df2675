# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What tools/quickstart.py does: a data set, a classifier and two detectors in some minutes, without any data."""

from .quickstart import quickstart

__all__ = ['quickstart']
