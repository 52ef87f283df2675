# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Prints the parameters and multiply-adds of an arch, or of the model of a config, by stage.

Attention is counted whatever the backend. The model, an arch with the head of ImageNet, is traced and not run.
"""

from dat_mm.arch import ARCHS
from dat_mm.commands import cli


def parse_args(argv=None):
    parser = cli.parser(__doc__)
    parser.add_argument('model', metavar='ARCH_OR_CONFIG', help=f'{", ".join(ARCHS)}, or a config file')
    parser.add_argument(
        '--shape', type=int, nargs='+', default=[224], metavar='N', help='H W of the input, or one side'
    )
    parser.add_argument('--img-size', type=int, nargs='+', help='training resolution of an arch; default 224')
    parser.add_argument('--window-size', type=int, help='of an arch; 12 for dat-base at 384')
    args = parser.parse_args(argv)
    if len(args.shape) > 2:
        parser.error(f'--shape takes one or two numbers, not {args.shape}')
    return args


def main(argv=None):
    cli.call('dat_mm.commands.get_flops', parse_args(argv), errors=(OSError, ValueError))


if __name__ == '__main__':
    main()
