# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Times backbones side by side, each case in a process of its own: JSON, Markdown tables and curves over the size.

--suite runs every target of the project for that device; otherwise all combinations of the options are run.
"""

import sys

from dat_mm.commands import cli


def parse_args(argv=None):
    parser = cli.parser(__doc__)
    parser.add_argument('--suite', choices=('cpu', 'gpu', 'deploy'), help='all targets for it, or of exported models')
    parser.add_argument('--groups', nargs='+', metavar='NAME', help='of a suite, these only')
    parser.add_argument('--out', default='work_dirs/benchmark', metavar='DIR')
    parser.add_argument(
        '--repeats', type=int, metavar='N', help='rounds of each launch (default: 5, or what the suite says)'
    )
    parser.add_argument('--quick', action='store_true', help='the first step of each case only: does it run?')
    parser.add_argument('--threads', type=int, metavar='N', help='on the CPU (default: what torch takes)')
    choice = parser.add_argument_group('without --suite')
    choice.add_argument('--archs', nargs='+', default=[], help='of dat_mm, or deformable-attention, the op alone')
    choice.add_argument('--peers', nargs='+', default=[], help='timm/NAME or mmpretrain/TYPE/ARCH')
    choice.add_argument(
        '--backends',
        nargs='+',
        default=['auto'],
        help='of the archs; reference computes as the code of the authors does',
    )
    choice.add_argument('--sizes', nargs='+', default=['224'], help='224 or 800x1280, height first')
    choice.add_argument('--batches', nargs='+', type=int, default=[1])
    choice.add_argument('--dtypes', nargs='+', default=['float32'], help='float32, bfloat16, float16 or amp')
    choice.add_argument('--modes', nargs='+', default=['inference'], help='inference, backward or training')
    choice.add_argument('--task', default='features', help='features: maps of all stages; classify: 1000 logits')
    choice.add_argument(
        '--runtimes',
        nargs='+',
        default=['torch'],
        help='torch, onnxruntime or openvino: the last two run exported files',
    )
    choice.add_argument('--compiled', action='store_true', help='each model by torch.compile too')
    choice.add_argument('--device', default='cpu', help='cpu or cuda')
    return parser.parse_args(argv)


def main(argv=None):
    passed = cli.call('dat_mm.benchmark.benchmark', parse_args(argv), errors=(OSError,))
    if not passed:
        sys.exit(1)


if __name__ == '__main__':
    main()
