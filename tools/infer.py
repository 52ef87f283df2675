# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Predicts on a picture or a folder of them, and draws what it finds.

A file that tools/export.py wrote does in place of a checkpoint.
"""

from dat_mm.commands import cli


def parse_args(argv=None):
    parser = cli.parser(__doc__)
    cli.add_image(parser)
    cli.add_config(parser)
    cli.add_checkpoint(parser)
    parser.add_argument('--out-dir', default='predictions', help='for pictures and predictions.json (%(default)s)')
    cli.add_predictor(parser)
    cli.add_cfg_options(parser)
    return parser.parse_args(argv)


def main(argv=None):
    cli.call('dat_mm.commands.infer', parse_args(argv))


if __name__ == '__main__':
    main()
