# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Evaluates a checkpoint, or a file that tools/export.py wrote, on the test data of a config."""

from dat_mm.commands import cli


def parse_args(argv=None):
    parser = cli.parser(__doc__)
    cli.add_config(parser)
    cli.add_checkpoint(parser)
    parser.add_argument('--work-dir', help='for the log (default: work_dirs/ and the name of the config)')
    parser.add_argument('--out', metavar='FILE', help='.json: write the metrics; .pkl: write the predictions')
    parser.add_argument('--show', action='store_true', help='predictions in windows')
    parser.add_argument('--show-dir', metavar='DIR', help='predictions as pictures into this folder')
    parser.add_argument('--wait-time', type=float, default=2.0, metavar='S', help='seconds a window stays (default: 2)')
    parser.add_argument('--interval', type=int, default=1, metavar='N', help='draw every N-th only (default: 1)')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation: that of the config, or a flip')
    parser.add_argument('--beside', metavar='CHECKPOINT', help='test it too, and print the metrics side by side')
    cli.add_cfg_options(parser)
    cli.add_launcher(parser)
    return parser.parse_args(argv)


def main(argv=None):
    cli.call('dat_mm.commands.test', parse_args(argv))


if __name__ == '__main__':
    main()
