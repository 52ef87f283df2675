# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Predicts on a picture or a folder of them, and draws what it finds."""

import argparse
import sys


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('image', help='picture, or a folder of pictures')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out-dir', default='predictions', help='for pictures and predictions.json (%(default)s)')
    parser.add_argument('--device', help='cpu, cuda, cuda:1 (default: a GPU if there is one)')
    parser.add_argument('--score-thr', type=float, default=0.3, help='leave out detections below it (%(default)s)')
    parser.add_argument(
        '--cfg-options', nargs='+', action='extend', default=[], metavar='KEY=VALUE', help='override the config'
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    from dat_mm.commands.infer import infer
    from dat_mm.errors import UserError

    try:
        infer(**vars(args))
    except UserError as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
