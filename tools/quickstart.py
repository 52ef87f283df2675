# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Trains and evaluates Mask R-CNN with DAT++ on the built-in data set: no data, no GPU needed."""

import sys
from pathlib import Path

from dat_mm.commands import cli


def parse_args(argv=None):
    parser = cli.parser(__doc__)
    parser.add_argument('--work-dir', default='work_dirs/quickstart', help='for everything it leaves (%(default)s)')
    parser.add_argument('--data-root', help='of Shapes (default: data/shapes, or shapes in DAT_MM_DATA)')
    parser.add_argument('--scenes', nargs=2, type=int, metavar=('TRAIN', 'VAL'), help='make so many (1400 250)')
    parser.add_argument('--epochs', nargs=2, type=int, metavar=('CLASSIFIER', 'DETECTOR'), help='train so long')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    args.root = Path(__file__).resolve().parents[1]
    try:
        cli.call('dat_mm.commands.quickstart', args)
    except KeyboardInterrupt:
        sys.exit('stopped; run it again to go on from here')


if __name__ == '__main__':
    main()
