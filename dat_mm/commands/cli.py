# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The arguments that tools share, and the one call that each of them makes into the package.

Standard library only: a tool reads its arguments before anything slow is imported, so that --help answers at once.
"""

import argparse
import sys
from importlib import import_module

from ..errors import FULL, UserError


def parser(doc: str) -> argparse.ArgumentParser:
    """Makes the parser of a tool, whose docstring is its description."""
    return argparse.ArgumentParser(description=doc)


def add_config(parser) -> None:
    parser.add_argument('config', help='config file')


def add_checkpoint(parser) -> None:
    parser.add_argument('checkpoint', help='checkpoint file')


def add_image(parser) -> None:
    parser.add_argument('image', help='picture, or a folder of pictures')


def add_predictor(parser) -> None:
    """Adds where a trained model runs, and which of its detections count."""
    parser.add_argument('--device', help='cpu, cuda, cuda:1 (default: a GPU if there is one)')
    parser.add_argument('--score-thr', type=float, default=0.3, help='leave out detections below it (%(default)s)')


def add_cfg_options(parser, example: str = '') -> None:
    """Adds --cfg-options, which may be given several times; `example` ends its help."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action='extend',
        default=[],
        metavar='KEY=VALUE',
        help=f'override the config{example and f", e.g. {example}"}',
    )


def add_launcher(parser) -> None:
    """Adds what torch.distributed, Slurm and MPI hand to each of several processes."""
    parser.add_argument('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none')
    parser.add_argument('--local-rank', '--local_rank', type=int, default=0, help='set by some launchers')


def pair(text: str) -> tuple[float, float]:
    """Reads two numbers with a comma between them."""
    first, _, second = text.partition(',')
    return float(first), float(second)


def call(module: str, args: argparse.Namespace, *, errors: tuple[type[Exception], ...] = ()):
    """Calls the function that a module is named for with the parsed arguments, and returns what it returns.

    The module is imported here and not before. A UserError, a full disk, or one of `errors` ends the tool with one line
    on stderr and exit status 1; any other exception keeps its traceback.
    """
    run = getattr(import_module(module), module.rpartition('.')[2])
    try:
        return run(**vars(args))
    except (UserError, *errors) as error:
        sys.exit(f'error: {error}')
    except OSError as error:
        if error.errno not in FULL:
            raise
        sys.exit(f'error: a file could not be written: {error}')
