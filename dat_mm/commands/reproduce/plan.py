# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What a reproduction would take, before anybody spends it: iterations, images, hours at the speed of this machine."""

import re
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from ...datasets.survey import leaf_datasets
from ...errors import UserError
from .runs import Run, hardware

# Of each data set: the name of its miniature, the data root within, and the number of training images, without those of
# COCO that have no object.
REAL = {
    'CocoDataset': ('coco', '', 117266),
    'CocoPanopticDataset': ('coco', '', 117266),
    'ADE20KDataset': ('ade20k', 'ADEChallengeData2016', 20210),
    'ImageNet': ('imagenet', '', 1281167),
}
TIME = re.compile(r'(?:Epoch|Iter)\(train\).*?\btime: ([\d.]+)')
WARM_UP, TIMED, PATIENCE = 3, 5, 90  # iterations, iterations, and seconds after which fewer have to do


class Length(NamedTuple):
    """How long the training of a config is."""

    iterations: int
    batch: int  # samples of one process in an iteration
    processes: int  # of the recipe

    @property
    def images(self) -> int:
        return self.iterations * self.batch * self.processes


def length_of(cfg, size: int) -> Length:
    """Reads the length of a training on so many images from its config."""
    batch = cfg.train_dataloader.batch_size
    total = (cfg.get('auto_scale_lr') or {}).get('base_batch_size', batch)
    loop = cfg.train_cfg
    iterations = loop.get('max_iters') or loop.max_epochs * -(-size // total)
    return Length(iterations, batch, max(total // batch, 1))


def _kind(cfg) -> str:
    """The type of the training data, without the wrappers around it."""
    return next(leaf_datasets(cfg.train_dataloader.dataset)).type.split('.')[-1]


def training_images(cfg) -> int:
    """The number of training images: that of the real data set where it is known, or else of the one that is there."""
    kind = _kind(cfg)
    if kind in REAL:
        return REAL[kind][2]
    from mmengine.registry import DATASETS

    return len(DATASETS.build(cfg.train_dataloader.dataset))


def _data(cfg, folder: Path) -> list[str]:
    """The options that have a config train on what there is: its own data, or else a few scenes in the same format."""
    from ...datasets import miniature
    from ..checks import check_data

    try:
        check_data(cfg, ('train',))
        return []
    except UserError:
        kind = _kind(cfg)
        if kind not in REAL:
            raise
        name, inner, _ = REAL[kind]
        root = miniature.WRITERS[name](folder / name, num_train=8, size=640)
        return [f'data_root={root / inner}']


def step_time(run: Run, cfg, folder: Path, on_line) -> float:
    """Measures the seconds of an iteration of one process: the training is begun."""
    options = [*run.how.cfg_options, *run.how.train_options, *_data(cfg, folder)]
    settings = ['default_hooks.logger.interval=1', 'log_processor.window_size=1', 'train_dataloader.num_workers=2']
    arguments = ['--work-dir', folder / 'work', '--no-validate', '--cfg-options', *options, *settings]
    command = [*run.how.command('train', run.row.config, *arguments)]
    times, last, start = [], '', time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace', stdin=subprocess.DEVNULL
    )
    try:
        for line in process.stdout:
            last = line.strip() or last
            match = TIME.search(line)
            if match:
                times.append(float(match.group(1)))
                on_line(f'{run.row.name}: iteration {len(times)}, {times[-1]:.2f} s')
            enough = len(times) >= WARM_UP + TIMED
            if enough or (len(times) > 1 and time.monotonic() - start > PATIENCE):
                break
        else:
            raise UserError(f'{run.title} does not train: {last}')
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    return median(times[min(WARM_UP, len(times) - 1) :])


def show(work) -> None:
    """Prints the plan of what is not done, row by row."""
    from ..config import load_config
    from ..prepare import import_toolbox

    seen, total, lines = {}, 0.0, []
    heads = (
        f'{"row":58} {"runs":>4} {"iterations":>10} {"images":>11} {"s/iteration":>11} {"processes":>9} {"hours":>9}'
    )
    for row, reason in work.without:
        work.screen.say(f'{row.name}: no checkpoint: {reason}')
    with tempfile.TemporaryDirectory() as folder:
        for row in work.rows:
            runs = [run for run in work.runs.get(row.config.resolve(), ()) if run.result() is None]
            training = [run for run in runs if run.checkpoint is None]
            if not runs:
                continue
            if not training:
                lines.append(f'{row.name:58} {len(runs):4} only tested: {runs[0].checkpoint}')
                continue
            cfg = load_config(row.config, [*training[0].how.cfg_options, *training[0].how.train_options])
            import_toolbox(cfg)
            length = length_of(cfg, training_images(cfg))
            key = str(cfg.model), length.batch, str(cfg.train_dataloader.dataset)
            if key not in seen:
                place = Path(tempfile.mkdtemp(dir=folder))
                seen[key] = step_time(training[0], cfg, place, work.screen.now)
            hours = len(training) * length.iterations * seen[key] * length.processes / 3600
            total += hours
            lines.append(
                f'{row.name:58} {len(training):4} {length.iterations:10} {length.images:11} {seen[key]:11.3f} '
                f'{length.processes:9} {hours:9.2f}'
            )
    unit = 'hours of a process' if 'CPU' in hardware() else 'GPU-hours'
    ending = f'{total:.2f} {unit} to train, without validations and tests; measured on {hardware()}'
    work.screen.end('\n'.join([heads, *lines, ending]) if lines else 'everything is done')
