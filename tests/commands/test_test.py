# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Test-time augmentation is for what the toolboxes can merge."""

from pathlib import Path

import pytest
from mmengine.config import Config

from dat_mm.commands.test import set_test_time_augmentation
from dat_mm.errors import UserError

SHAPES = Path(__file__).parents[2] / 'configs/shapes'


@pytest.mark.parametrize(
    'config',
    [
        'mask-rcnn_datpp-nano_fpn_1xb4_shapes',
        'cascade-mask-rcnn_datpp-nano_fpn_1xb4_shapes',
        'mask2former_datpp-nano_1xb4_shapes-panoptic',
    ],
)
def test_masks_are_not_merged(config):
    cfg = Config.fromfile(SHAPES / f'{config}.py')
    with pytest.raises(UserError, match=f'--tta: {cfg.model.type} predicts masks, and mmdet merges boxes only'):
        set_test_time_augmentation(cfg)


@pytest.mark.parametrize(
    ('config', 'wrapper'),
    [
        ('retinanet_datpp-nano_fpn_1xb4_shapes', 'DetTTAModel'),
        ('dino-3scale_datpp-nano_1xb4_shapes', 'DetTTAModel'),
        ('datpp-nano_upernet_1xb8_shapes-128x128', 'SegTTAModel'),
    ],
)
def test_flips_are_merged(config, wrapper):
    cfg = Config.fromfile(SHAPES / f'{config}.py')
    model = cfg.model.type
    set_test_time_augmentation(cfg)
    assert (cfg.model.type, cfg.model.module.type) == (wrapper, model)
    assert cfg.test_dataloader.dataset.pipeline == cfg.tta_pipeline
