# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Prints what the metafile.yml of its folder says about a config: parameters, FLOPs, data, length, batch.

Published results, and where they are from, go below it by hand.
"""

from dat_mm.commands import cli


def parse_args(argv=None):
    parser = cli.parser(__doc__)
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='config files below configs/')
    return parser.parse_args(argv)


def main(argv=None):
    cli.call('dat_mm.commands.metafile_entry', parse_args(argv), errors=(OSError, ValueError))


if __name__ == '__main__':
    main()
