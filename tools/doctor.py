# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Tells whether the installation fits together, and whether each op is right, repeats itself and is fast here.

A summary to paste into an issue goes to stdout, and what happens meanwhile to stderr. The exit status is 1 where
something is wrong. The same as `python -m dat_mm.doctor`, which an installed wheel has.
"""

from dat_mm.doctor import main

if __name__ == '__main__':
    main()
