# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What tools/doctor.py does: it looks at what is installed, and holds each op against float64 on this machine."""

from .doctor import doctor

__all__ = ['doctor']
