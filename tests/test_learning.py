# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The shipped configs learn: a short training on easy Shapes passes a bar that frozen random weights miss.

Classifier and detector are tested on scenes they have not seen. A segmentor takes ten minutes until it tells shapes in
new scenes from the background. So it is tested on the scenes it is shown, which it learns in a minute.

`python tests/test_learning.py` prints the metrics with the backbone trained and frozen. The bars were set by these.
"""

import sys
import tempfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.one_stack

CONFIGS = Path(__file__).parents[1] / 'configs/shapes'
NEW_SCENES = dict(num_train=500, num_val=60, difficulty=0.0)
SAME_SCENES = dict(num_train=24, num_val=1, difficulty=0.0)
# task: (config, metric, bar, (epochs or iterations, which), data)
TASKS = {
    'classification': ('datpp-nano_1xb32_shapes', 'accuracy/top1', 35.0, (6, 'max_epochs'), NEW_SCENES),
    'detection': ('mask-rcnn_datpp-nano_fpn_1xb4_shapes', 'coco/bbox_mAP_50', 0.05, (3, 'max_epochs'), NEW_SCENES),
    'segmentation': ('datpp-nano_semantic-fpn_1xb8_shapes-128x128', 'mIoU', 33.0, (150, 'max_iters'), SAME_SCENES),
}


def learn(task, folder, frozen=False, weights=None):
    """The metric after a short training, and the last checkpoint."""
    from dat_mm.commands.train import train_config
    from dat_mm.engine.checkpoints import latest_checkpoint
    from dat_mm.engine.runner import Runner

    config, metric, _, (length, of), data = TASKS[task]
    options = [
        f'data_root={folder}/shapes-{data["num_train"]}',
        f'train_cfg.{of}={length}',
        f'train_cfg.val_interval={length}',
    ]
    warm_up = 100 if task == 'classification' else 20  # from nothing, a shorter one fails with some seeds
    options += [f'param_scheduler.{key}' for key in (f'1.end={length}', f'1.T_max={length}', f'0.end={warm_up}')]
    for phase in ('train', 'val', 'test'):
        options += [f'{phase}_dataloader.dataset.make.{key}={value}' for key, value in data.items()]
        options += [f'{phase}_dataloader.num_workers=0', f'{phase}_dataloader.persistent_workers=False']
    if data is SAME_SCENES:
        options.append('val_dataloader.dataset.split=train')
    if frozen:
        options.append('model.backbone.frozen_stages=4')
    if weights:
        options.append(f'model.backbone.init_cfg.checkpoint={weights}')
    work_dir = folder / f'{task}-frozen' if frozen else folder / task
    cfg = train_config(CONFIGS / f'{config}.py', work_dir=work_dir, seed=0, cfg_options=options)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner.message_hub.get_scalar(f'val/{metric}').current(), latest_checkpoint(work_dir)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('learning')


@pytest.fixture(scope='module')
def classifier(folder):
    return learn('classification', folder)


@pytest.mark.slow
def test_a_classifier_learns(classifier):
    assert classifier[0] > TASKS['classification'][2]


@pytest.mark.slow
def test_a_detector_learns_from_the_backbone_of_the_classifier(folder, classifier):
    assert learn('detection', folder, weights=classifier[1])[0] > TASKS['detection'][2]


@pytest.mark.slow
def test_a_segmentor_learns_the_scenes_it_is_shown(folder):
    assert learn('segmentation', folder)[0] > TASKS['segmentation'][2]


if __name__ == '__main__':
    import time

    with tempfile.TemporaryDirectory() as name:
        weights = None
        for task in sys.argv[1:] or TASKS:
            for frozen in (True, False):
                start = time.process_time()
                value, checkpoint = learn(task, Path(name), frozen, None if frozen else weights)
                print(task, 'frozen' if frozen else 'trained', value, f'{time.process_time() - start:.0f} s of CPU')
            weights = weights or checkpoint
