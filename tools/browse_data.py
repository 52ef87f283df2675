# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Draws what a config feeds its model, after all augmentation, with the annotations."""

import argparse
import sys


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('--out-dir', help='for the pictures (default: work_dirs/browse/CONFIG/PHASE)')
    parser.add_argument('--number', type=int, default=16, metavar='N', help='how many pictures (%(default)s)')
    parser.add_argument('--phase', choices=('train', 'val'), default='train')
    parser.add_argument('--seed', type=int, default=0, help='of order and augmentation (%(default)s)')
    parser.add_argument(
        '--cfg-options', nargs='+', action='extend', default=[], metavar='KEY=VALUE', help='override the config'
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    from dat_mm.commands.browse_data import browse
    from dat_mm.errors import UserError

    try:
        browse(**vars(args))
    except UserError as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
