# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Makes one page of one or several training runs: curves, results, predictions, attention, config, environment."""

from dat_mm.commands import cli


def parse_args(argv=None):
    parser = cli.parser(__doc__)
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR', help='of a run; several stand side by side')
    parser.add_argument('--out', metavar='OUT.html', help='(default: report.html in the first work dir)')
    parser.add_argument('--samples', type=int, default=4, metavar='N', help='pictures to predict on (%(default)s)')
    cli.add_predictor(parser)
    return parser.parse_args(argv)


def main(argv=None):
    cli.call('dat_mm.commands.report', parse_args(argv))


if __name__ == '__main__':
    main()
