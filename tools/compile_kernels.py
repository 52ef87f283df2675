# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Compiles the Triton kernels as they would be launched, for a GPU that need not be there: registers, memory, code.

A thread has up to 255 registers; what does not fit is spilled into slow memory. The longest loop is told in
instructions, and in those of them that take eight times as long: exponentials and conversions.
"""

from dat_mm.commands import cli


def parse_args(argv=None):
    parser = cli.parser(__doc__)
    parser.add_argument('--dtypes', nargs='+', default=['bfloat16', 'float32'])
    parser.add_argument('--widths', nargs='+', type=int, default=[32], help='of the heads')
    parser.add_argument('--conventions', nargs='+', default=['dat', 'datpp'], help='datpp: at its training resolution')
    parser.add_argument('--capability', type=int, default=90, help='of the GPU: 80, 86, 89, 90 or more')
    parser.add_argument('--json', action='store_true', dest='as_json', help='print JSON instead of a table')
    return parser.parse_args(argv)


def main(argv=None):
    cli.call('dat_mm.benchmark.compile_kernels', parse_args(argv))


if __name__ == '__main__':
    main()
