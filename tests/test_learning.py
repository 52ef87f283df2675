# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The shipped configs learn: a minute of training on easy Shapes passes a bar that frozen random weights miss.

`python tests/test_learning.py` prints what the bars were set by: the metric with the backbone trained and frozen.
"""

import sys
import tempfile
from pathlib import Path

import pytest

CONFIGS = Path(__file__).parents[1] / 'configs/shapes'
# task: (config, metric, bar, options)
TASKS = {
    'classification': (
        'datpp-nano_1xb64_shapes',
        'accuracy/top1',
        40.0,
        ['train_dataloader.batch_size=32', 'train_cfg.max_epochs=3', 'train_cfg.val_interval=3'],
    ),
    'segmentation': (
        'datpp-nano_semantic-fpn_1xb8_shapes-160x160',
        'mIoU',
        20.0,
        [
            'train_cfg.max_iters=120',
            'train_cfg.val_interval=120',
            'param_scheduler.1.end=120',
            'param_scheduler.1.T_max=120',
        ],
    ),
    'detection': (
        'mask-rcnn_datpp-nano_fpn_1xb8_shapes',
        'coco/bbox_mAP_50',
        0.05,
        ['train_cfg.max_epochs=3', 'train_cfg.val_interval=3'],
    ),
}
DATA = dict(num_train=400, num_val=60, difficulty=0.0)


def learn(task, folder, frozen=False):
    """The metric after a short training from random weights, or None where nothing was measured."""
    from dat_mm.engine.runner import Runner
    from dat_mm.engine.training import train_config

    config, metric, _, options = TASKS[task]
    make = [f'{phase}_dataloader.dataset.make.{k}={v}' for phase in ('train', 'val', 'test') for k, v in DATA.items()]
    workers = [f'{phase}_dataloader.num_workers=0' for phase in ('train', 'val', 'test')]
    options = [f'data_root={folder}/shapes', *make, *workers, *options]
    if frozen:
        options.append('model.backbone.frozen_stages=4')
    cfg = train_config(CONFIGS / f'{config}.py', work_dir=folder / f'{task}{frozen}', seed=0, cfg_options=options)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner.message_hub.get_scalar(f'val/{metric}').current()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('learning')


@pytest.mark.slow
@pytest.mark.parametrize('task', TASKS)
def test_a_short_training_passes_the_bar(task, folder):
    assert learn(task, folder) > TASKS[task][2]


if __name__ == '__main__':
    import time

    with tempfile.TemporaryDirectory() as name:
        for task in sys.argv[1:] or TASKS:
            for frozen in (False, True):
                start = time.process_time()
                value = learn(task, Path(name), frozen)
                print(task, 'frozen' if frozen else 'trained', value, f'{time.process_time() - start:.0f} s of CPU')
