# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Where things are kept that are made or fetched once."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """The folder ${DAT_MM_CACHE:-${XDG_CACHE_HOME:-~/.cache}/dat_mm}, which may not be there yet."""
    own = os.environ.get('DAT_MM_CACHE')
    return Path(own or Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache', 'dat_mm')).expanduser()
