# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Draws what deformable attention looks at in a picture, or in each picture of a folder."""

from dat_mm.commands import cli


def parse_args(argv=None):
    parser = cli.parser(__doc__)
    cli.add_image(parser)
    cli.add_config(parser)
    cli.add_checkpoint(parser)
    parser.add_argument('--layer', help='STAGE.BLOCK from 0, or a module (default: the last of the third stage)')
    parser.add_argument('--query', type=cli.pair, metavar='X,Y', help='in pixels (default: the middle of the best box)')
    parser.add_argument('--topk', type=int, default=60, help='draw so many of the strongest keys (%(default)s)')
    parser.add_argument(
        '--figure',
        nargs='+',
        default=['overview'],
        metavar='KIND',
        help='overview, points, attention, keys, heads, fields, bias, depth, decoder, offsets, similarity '
        '(%(default)s)',
    )
    parser.add_argument('--out', default='attention', help='folder, or a .png, .pdf or .svg file (%(default)s)')
    parser.add_argument('--dpi', type=int, default=200, help='pixels per inch of a PNG (%(default)s)')
    parser.add_argument('--html', metavar='OUT.html', help='also write the interactive page; of a folder, a folder')
    cli.add_predictor(parser)
    cli.add_cfg_options(parser)
    return parser.parse_args(argv)


def main(argv=None):
    cli.call('dat_mm.commands.visualize_attention', parse_args(argv))


if __name__ == '__main__':
    main()
