# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Writes a trained model to one file that ONNX Runtime, OpenVINO or a browser runs, with the same answers.

OUT.onnx has standard operators only; OUT.xml is OpenVINO's format, with the weights in OUT.bin. tools/infer.py and
tools/test.py take either in place of a checkpoint. An installed package has it as `python -m dat_mm.export`.
"""

from dat_mm.commands import cli


def parse_args(argv=None):
    parser = cli.parser(__doc__)
    parser.add_argument('config', help='config file; or the name of an arch, for a bare backbone')
    cli.add_checkpoint(parser)
    parser.add_argument('out', help='file to write: OUT.onnx or OUT.xml')
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument('--shape', nargs=2, type=int, metavar=('H', 'W'), help='take images of one size only')
    sizes.add_argument('--dynamic', action='store_true', help='take images of any size (the default)')
    parser.add_argument('--batch', type=int, metavar='N', help='of so many images at once only, with --shape')
    parser.add_argument(
        '--precision',
        choices=('fp32', 'fp16', 'int8'),
        default='fp32',
        help='of the weights, or of products (%(default)s)',
    )
    parser.add_argument(
        '--preprocess',
        choices=('inside', 'outside'),
        default='inside',
        help='where pixels are normalised (%(default)s)',
    )
    parser.add_argument(
        '--masks',
        choices=('image', 'box'),
        default='image',
        help='masks of the whole image, or of boxes only (%(default)s)',
    )
    parser.add_argument('--backbone', action='store_true', help="the backbone of the config's model only")
    parser.add_argument(
        '--check', nargs='?', const=True, metavar='PICTURES', help='compare with PyTorch, on made pictures or on these'
    )
    parser.add_argument('--calibration', metavar='PICTURES', help='for int8 (default: the test data of the config)')
    parser.add_argument('--pictures', type=int, default=64, metavar='N', help='of them at most (%(default)s)')
    parser.add_argument('--page', metavar='OUT.html', help='also write a page that runs the model in a browser')
    parser.add_argument('--layer', help='the page shows its attention (default: the last of the third stage)')
    parser.add_argument('--examples', metavar='PICTURES', help='on the page (default: the test data of the config)')
    parser.add_argument(
        '--runtime',
        metavar='FOLDER_OR_TGZ',
        help='the npm package onnxruntime-web, for the page (default: downloaded once)',
    )
    cli.add_cfg_options(parser)
    return parser.parse_args(argv)


def main(argv=None):
    cli.call('dat_mm.commands.export', parse_args(argv))


if __name__ == '__main__':
    main()
