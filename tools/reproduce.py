# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Measures the rows of tables of results, from checkpoints or from trainings of its own, and writes a table.

Rows that are done are not done again; a training that was stopped goes on.
"""

from pathlib import Path

from dat_mm.commands import cli


def parse_args(argv=None):
    parser = cli.parser(__doc__)
    parser.add_argument('paths', nargs='+', metavar='FOLDER_OR_CONFIG', help='folder with a metafile, or config')
    parser.add_argument('--weights', metavar='DIR', help="checkpoints, the authors' as downloaded or others")
    parser.add_argument('--work-dirs', metavar='DIR', default='work_dirs', help='of own trainings (%(default)s)')
    parser.add_argument(
        '--data-root', nargs='+', default=(), metavar='DIR', help='of the data; for several: coco=DIR ade20k=DIR'
    )
    parser.add_argument('--out', metavar='DIR', default='work_dirs/reproduced', help='for all results (%(default)s)')
    parser.add_argument('--train', action='store_true', help='train rows without a checkpoint first')
    parser.add_argument('--seeds', metavar='N', default='1', help='how many, or which, as in 0,4 (%(default)s)')
    parser.add_argument('--processes', type=int, default=1, metavar='N', help='for each run (%(default)s)')
    parser.add_argument('--plan', action='store_true', help='print what it would take, and do nothing')
    parser.add_argument('--submit', metavar='PARTITION', help='do it as array jobs of Slurm')
    parser.add_argument('--write', action='store_true', help='add to README, metafile and measured.json of the folder')
    parser.add_argument('--launcher', choices=('none', 'slurm'), default='none', help='set by --submit')
    cli.add_cfg_options(parser)
    parser.add_argument(
        '--train-options', nargs='+', action='extend', default=[], metavar='KEY=VALUE', help='for trainings alone'
    )
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    args.tools = Path(__file__).resolve().parent
    cli.call('dat_mm.commands.reproduce', args)


if __name__ == '__main__':
    main()
