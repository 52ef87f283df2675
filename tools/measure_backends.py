# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Times every backend of the two ops at the shapes of the models, and what 'auto' chooses there.

The thresholds in dat_mm/ops come from this. It measures the processor time of one thread, so that other work on the
machine matters little; backends take turns, and medians are printed.
"""

from dat_mm.commands import cli


def parse_args(argv=None):
    parser = cli.parser(__doc__)
    parser.add_argument('--only', default='', help='measure the shapes whose names have this in them')
    parser.add_argument('--repeats', type=int, default=3, help='runs of each backend (%(default)s)')
    parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'))
    return parser.parse_args(argv)


def main(argv=None):
    cli.call('dat_mm.benchmark.measure_backends', parse_args(argv))


if __name__ == '__main__':
    main()
