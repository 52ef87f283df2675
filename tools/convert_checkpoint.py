# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Converts the authors' DAT and DAT++ checkpoints for mmpretrain, mmdet 3 and mmseg 1."""

from dat_mm.commands import cli


def parse_args(argv=None):
    parser = cli.parser(__doc__)
    parser.add_argument('src', help='official checkpoint: classification, detection or segmentation')
    parser.add_argument('dst', help='file to write, .pth or .safetensors')
    parser.add_argument('--backbone-only', action='store_true', help="only the backbone, its keys without 'backbone.'")
    return parser.parse_args(argv)


def main(argv=None):
    cli.call('dat_mm.commands.convert_checkpoint', parse_args(argv), errors=(OSError, ValueError))


if __name__ == '__main__':
    main()
