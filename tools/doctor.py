# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Tells whether the installation fits together, and whether each op is right, repeats itself and is fast here.

A summary to paste into an issue goes to stdout, and what happens meanwhile to stderr. The exit status is 1 where
something is wrong. An installed package has it as `python -m dat_mm.doctor`.
"""

import sys

from dat_mm.commands import cli


def parse_args(argv=None):
    parser = cli.parser(__doc__)
    parser.add_argument('--device', help='cpu, cuda, cuda:1 (default: a GPU if there is one)')
    parser.add_argument('--only', choices=('installation', 'ops'), help='one of the two halves')
    parser.add_argument('--repeats', type=int, default=3, metavar='N', help='of each time (%(default)s)')
    parser.add_argument('--json', metavar='FILE', help='everything that was found')
    return parser.parse_args(argv)


def main(argv=None):
    if not cli.call('dat_mm.commands.doctor', parse_args(argv)):
        sys.exit(1)


if __name__ == '__main__':
    main()
