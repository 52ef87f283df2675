# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Draws the losses and metrics of training runs and writes a table of their best results."""

from dat_mm.commands import cli


def parse_args(argv=None):
    parser = cli.parser(__doc__)
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR', help='work dirs to draw together')
    parser.add_argument('--out-dir', help='for losses.png, metrics.png and results.md (default: the first WORK_DIR)')
    parser.add_argument('--keys', nargs='+', metavar='KEY', help='draw these only, e.g. loss coco/bbox_mAP')
    return parser.parse_args(argv)


def main(argv=None):
    cli.call('dat_mm.commands.analyze', parse_args(argv))


if __name__ == '__main__':
    main()
