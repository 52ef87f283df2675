# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Finds what is wrong with the data of a config: images, annotations, segmentation maps. All of it is read."""

from dat_mm.commands import cli


def parse_args(argv=None):
    parser = cli.parser(__doc__)
    cli.add_config(parser)
    parser.add_argument('--phases', metavar='P,P', help='of train, val and test (default: all that the config has)')
    parser.add_argument('--workers', type=int, metavar='N', help='processes (default: one for each core)')
    parser.add_argument('--show', type=int, default=10, metavar='N', help='faults of a kind to print (%(default)s)')
    parser.add_argument('--out', metavar='FILE.json', help='write all faults there')
    cli.add_cfg_options(parser, 'data_root=PATH')
    return parser.parse_args(argv)


def main(argv=None):
    cli.call('dat_mm.commands.check_data', parse_args(argv))


if __name__ == '__main__':
    main()
