# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""How the memory of a CPU run is handed out."""

import ctypes
import os

TRIM, MAP = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
VARIABLES = ('MALLOC_TRIM_THRESHOLD_', 'MALLOC_MMAP_THRESHOLD_')


def keep_freed_memory() -> bool:
    """Has the C library keep what a tensor leaves for the next one, and says whether it does.

    By default glibc gives large pieces back to the system, which clears each page again when it is next asked for. A
    training step of dat-tiny at 512x512 took a sixth less time without that, and its peak stayed the same. Whoever sets
    the variables of malloc has the last word; other C libraries are left alone.
    """
    if any(name in os.environ for name in VARIABLES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # no glibc
        return False
    return bool(mallopt(MAP, 1 << 30) and mallopt(TRIM, (1 << 31) - 1))
