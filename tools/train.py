# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Trains the model of a config: detection with mmdet, segmentation with mmseg, classification with mmpretrain."""

from dat_mm.commands import cli


def parse_args(argv=None):
    parser = cli.parser(__doc__)
    cli.add_config(parser)
    parser.add_argument('--work-dir', help='for checkpoints and logs (default: work_dirs/ and the name of the config)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CKPT',
        help='go on from this checkpoint, or without a name from the last one in the work dir, if there is one',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision, whatever the config says')
    parser.add_argument('--amp-dtype', choices=('float16', 'bfloat16'), help='of mixed precision; implies --amp')
    parser.add_argument('--auto-scale-lr', action='store_true', help='learning rate in proportion to the total batch')
    parser.add_argument('--no-validate', action='store_true', help='train only')
    parser.add_argument('--tensorboard', action='store_true', help='log to TensorBoard too')
    parser.add_argument('--seed', type=int, help='of everything random (default: a new one for each run)')
    parser.add_argument('--deterministic', action='store_true', help='deterministic algorithms of torch only')
    cli.add_cfg_options(parser, example='train_dataloader.batch_size=4 data_root=/data/coco')
    cli.add_launcher(parser)
    return parser.parse_args(argv)


def main(argv=None):
    cli.call('dat_mm.commands.train', parse_args(argv))


if __name__ == '__main__':
    main()
