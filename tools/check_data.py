# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Reads every sample of the data of a config and tells what is wrong with it. Exit status 1 where anything is."""

import sys

from dat_mm.commands import cli


def parse_args(argv=None):
    parser = cli.parser(__doc__)
    cli.add_config(parser)
    parser.add_argument('--phases', metavar='PHASES', help='such as train,val (default: all that the config has)')
    parser.add_argument('--workers', type=int, metavar='N', help='processes that read images (default: all cores)')
    parser.add_argument('--show', type=int, default=10, metavar='N', help='faults of each kind to print (%(default)s)')
    parser.add_argument('--out', metavar='FILE', help='write all faults to this JSON file')
    cli.add_cfg_options(parser, example='data_root=/data/coco')
    return parser.parse_args(argv)


def main(argv=None):
    if not cli.call('dat_mm.commands.check_data', parse_args(argv)):
        sys.exit(1)


if __name__ == '__main__':
    main()
