# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What the user can put right, told in one line."""

import errno

# A disk is full, or what a user may have on it. Windows has no quotas of that kind.
FULL = {errno.ENOSPC, getattr(errno, 'EDQUOT', errno.ENOSPC)}


class UserError(Exception):
    """Something to change on the command line, in the config or on the disk; tools print it without a traceback."""
