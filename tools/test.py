# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Evaluates a checkpoint on the test data of a config."""

import argparse
import sys


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--work-dir', help='for the log (default: work_dirs/ and the name of the config)')
    parser.add_argument('--out', metavar='FILE', help='.json: write the metrics; .pkl: write the predictions')
    parser.add_argument('--show', action='store_true', help='predictions in windows')
    parser.add_argument('--show-dir', metavar='DIR', help='predictions as pictures into this folder')
    parser.add_argument('--wait-time', type=float, default=2.0, metavar='S', help='seconds a window stays (default: 2)')
    parser.add_argument('--interval', type=int, default=1, metavar='N', help='draw every N-th only (default: 1)')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation: that of the config, or a flip')
    parser.add_argument(
        '--cfg-options', nargs='+', action='extend', default=[], metavar='KEY=VALUE', help='override the config'
    )
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none')
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help='set by some launchers')
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    from dat_mm.commands.test import test
    from dat_mm.errors import UserError

    try:
        test(**vars(args))
    except UserError as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
