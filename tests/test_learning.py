# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The shipped configs learn: a short training on easy Shapes passes a bar, which frozen random weights miss.

Classifiers and detectors are tested on scenes they have not seen. Segmentors and Mask2Former take ten minutes until
they tell shapes in new scenes. So they are tested on the scenes they are shown, which they learn in a minute.
Mask2Former does that with a frozen backbone too: its tests say that the config learns, not that the backbone does.

`python tests/test_learning.py` prints the metrics with the backbone trained and frozen. The bars were set by these.
"""

import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.one_stack

CONFIGS = Path(__file__).parents[1] / 'configs/shapes'
NEW_SCENES = dict(num_train=500, num_val=60, difficulty=0.0)
SAME_SCENES = dict(num_train=24, num_val=1, difficulty=0.0)


class Task(NamedTuple):
    """A short training: how long it is, and the metric above which it counts as having learned."""

    config: str
    metric: str
    bar: float
    length: int
    of: str = 'max_epochs'
    data: dict = NEW_SCENES
    starts_from: str | None = None


TASKS = {
    'classification': Task('datpp-nano_1xb32_shapes', 'accuracy/top1', 35.0, 6),
    'detection': Task(
        'mask-rcnn_datpp-nano_fpn_1xb4_shapes', 'coco/bbox_mAP_50', 0.05, 3, starts_from='classification'
    ),
    'segmentation': Task('datpp-nano_semantic-fpn_1xb8_shapes-128x128', 'mIoU', 33.0, 150, 'max_iters', SAME_SCENES),
    'dino': Task('dino-3scale_datpp-nano_1xb4_shapes', 'coco/bbox_mAP_50', 0.03, 3, starts_from='classification'),
    'deformable-detr': Task(
        'deformable-detr-refine-twostage_datpp-nano_1xb4_shapes',
        *('coco/bbox_mAP_50', 0.05, 3),
        starts_from='classification',
    ),
    'mask2former': Task('mask2former_datpp-nano_1xb4_shapes', 'coco/segm_mAP_50', 0.5, 40, data=SAME_SCENES),
    'panoptic': Task('mask2former_datpp-nano_1xb4_shapes-panoptic', 'coco_panoptic/PQ', 25.0, 40, data=SAME_SCENES),
}
# of the scenes that are shown: {key of the evaluator: path}
TRUTH = {
    'mask2former': {'ann_file': 'annotations/instances_train.json'},
    'panoptic': {
        '0.ann_file': 'panoptic/train.json',
        '0.seg_prefix': 'panoptic/train/',
        '1.ann_file': 'annotations/instances_train.json',
    },
}


def learn(name, folder, frozen=False, weights=None):
    """The metric after a short training, and the last checkpoint."""
    from dat_mm.commands.train import train_config
    from dat_mm.engine.checkpoints import latest_checkpoint
    from dat_mm.engine.runner import Runner

    config, metric, _, length, of, data, _ = TASKS[name]
    root = folder / f'shapes-{data["num_train"]}'
    options = [
        f'data_root={root}',
        f'train_cfg.{of}={length}',
        f'train_cfg.val_interval={length}',
    ]
    warm_up = 100 if name == 'classification' else 20  # from nothing, a shorter one fails with some seeds
    options += [f'param_scheduler.{key}' for key in (f'1.end={length}', f'1.T_max={length}', f'0.end={warm_up}')]
    for phase in ('train', 'val', 'test'):
        options += [f'{phase}_dataloader.dataset.make.{key}={value}' for key, value in data.items()]
        options += [f'{phase}_dataloader.num_workers=0', f'{phase}_dataloader.persistent_workers=False']
    if data is SAME_SCENES:
        options.append('val_dataloader.dataset.split=train')
        options += [f'val_evaluator.{key}={root}/{value}' for key, value in TRUTH.get(name, {}).items()]
    if frozen:
        options.append('model.backbone.frozen_stages=4')
    if weights:
        options.append(f'model.backbone.init_cfg.checkpoint={weights}')
    work_dir = folder / (f'{name}-frozen' if frozen else name)
    cfg = train_config(CONFIGS / f'{config}.py', work_dir=work_dir, seed=0, cfg_options=options)
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner.message_hub.get_scalar(f'val/{metric}').current(), latest_checkpoint(work_dir)


def learner(folder):
    """A function that learns each task once, after the one that it starts from."""
    found = {}

    def learned(name):
        if name not in found:
            before = TASKS[name].starts_from
            found[name] = learn(name, folder, weights=learned(before)[1] if before else None)
        return found[name]

    return learned


@pytest.fixture(scope='module')
def learned(tmp_path_factory):
    return learner(tmp_path_factory.mktemp('learning'))


@pytest.mark.slow
@pytest.mark.parametrize('name', TASKS)
def test_it_learns(learned, name):
    assert learned(name)[0] > TASKS[name].bar


if __name__ == '__main__':
    import time

    with tempfile.TemporaryDirectory() as place:
        trained = learner(Path(place))
        for name in sys.argv[1:] or TASKS:
            for state, run in (('frozen', lambda name: learn(name, Path(place), frozen=True)), ('trained', trained)):
                if state == 'trained' and TASKS[name].starts_from:
                    trained(TASKS[name].starts_from)
                start = time.process_time()
                value, _ = run(name)
                print(name, state, value, f'{time.process_time() - start:.0f} s of CPU', flush=True)
