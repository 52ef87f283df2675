# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Draws what a config feeds its model, after all augmentation, with the annotations."""

from dat_mm.commands import cli


def parse_args(argv=None):
    parser = cli.parser(__doc__)
    cli.add_config(parser)
    parser.add_argument('--out-dir', help='for the pictures (default: work_dirs/browse/CONFIG/PHASE)')
    parser.add_argument('--number', type=int, default=16, metavar='N', help='how many pictures (%(default)s)')
    parser.add_argument('--phase', choices=('train', 'val'), default='train')
    parser.add_argument('--seed', type=int, default=0, help='of order and augmentation (%(default)s)')
    cli.add_cfg_options(parser)
    return parser.parse_args(argv)


def main(argv=None):
    cli.call('dat_mm.commands.browse_data', parse_args(argv))


if __name__ == '__main__':
    main()
