# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The shipped models of the three toolboxes train a step and predict, with the nano backbones."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData

CONFIGS = Path(__file__).parents[1] / 'configs'
DIMS = [32, 64, 128, 192]


def build(stem, arch, **options):
    """The model of a config, with a nano backbone in place of its own and with heads that fit it."""
    config = Config.fromfile(CONFIGS / f'{stem}.py')
    init_default_scope(config.default_scope)
    from mmengine.registry import MODELS

    model = config.model
    model.backbone.update(arch=arch, init_cfg=None, drop_path_rate=0.1)
    if 'neck' in model and 'in_channels' in model.neck:
        wide = model.neck.in_channels  # the neck of RetinaNet leaves out the first stage
        model.neck.in_channels = DIMS[-len(wide) :]
    if 'decode_head' in model:
        if 'neck' not in model:
            model.decode_head.in_channels = DIMS
        if 'auxiliary_head' in model:
            model.auxiliary_head.in_channels = DIMS[2]
    if model.type == 'ImageClassifier':
        model.head.in_channels = DIMS[-1]
    if 'roi_head' in model:  # few regions, because their heads would take most of the time
        for stage in model.train_cfg.rcnn if isinstance(model.train_cfg.rcnn, list) else [model.train_cfg.rcnn]:
            stage.sampler.num = 16
        model.train_cfg.rpn_proposal.max_per_img = model.test_cfg.rpn.max_per_img = 16
    model = revert_sync_batchnorm(MODELS.build(model))
    model.init_weights()
    return model


def train_step(model, data):
    model.train()
    losses, log = model.parse_losses(model(**model.data_preprocessor(data, True), mode='loss'))
    losses.backward()
    missing = [name for name, p in model.backbone.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert losses.isfinite() and not missing
    return log


@pytest.mark.parametrize(
    'stem',
    [
        'coco/retinanet_{}-tiny_fpn_{}_coco',
        'coco/mask-rcnn_{}-tiny_fpn_{}_coco',
        'coco/cascade-mask-rcnn_{}-tiny_fpn_{}_coco',
    ],
)
@pytest.mark.parametrize(('arch', 'schedule'), [('dat', '8xb2-1x'), ('datpp', '32xb2-ms-1x')])
def test_detectors(stem, arch, schedule):
    from mmdet.testing import demo_mm_inputs

    model = build(stem.format(arch, schedule), f'{arch}-nano')
    data = demo_mm_inputs(2, [[3, 96, 128], [3, 112, 96]], num_items=[3, 2], num_classes=80, with_mask=True)
    log = train_step(model, data)
    assert {'loss_cls', 'loss_bbox'} <= {key.split('.')[-1] for key in log}
    with torch.no_grad():
        results = model.eval()(**model.data_preprocessor(data, False), mode='predict')
    assert len(results) == 2 and results[0].pred_instances.bboxes.shape[1] == 4


@pytest.mark.parametrize(
    'stem',
    ['ade20k/{}-tiny_upernet_8xb2-160k_ade20k-512x512', 'ade20k/{}-tiny_semantic-fpn_8xb4-40k_ade20k-512x512'],
)
@pytest.mark.parametrize('arch', ['dat', 'datpp'])
def test_segmentors(stem, arch):
    from mmseg.structures import SegDataSample

    model = build(stem.format(arch), f'{arch}-nano')
    samples = []
    for _ in range(2):
        sample = SegDataSample(metainfo=dict(img_shape=(96, 128), ori_shape=(96, 128), pad_shape=(96, 128)))
        sample.gt_sem_seg = PixelData(data=torch.randint(0, 150, (1, 96, 128)))
        samples.append(sample)
    data = dict(inputs=[torch.randint(0, 256, (3, 96, 128)) for _ in samples], data_samples=samples)
    model.data_preprocessor.size = (96, 128)
    train_step(model, data)
    with torch.no_grad():
        results = model.eval()(**model.data_preprocessor(data, False), mode='predict')
    assert results[0].pred_sem_seg.data.shape == (1, 96, 128)


@pytest.mark.parametrize('arch', ['dat', 'datpp'])
def test_classifiers(arch):
    from mmpretrain.structures import DataSample

    model = build(f'imagenet/{arch}-tiny_32xb128_in1k', f'{arch}-nano')
    samples = [DataSample().set_gt_label(label) for label in (3, 5)]
    data = dict(inputs=torch.randint(0, 256, (2, 3, 64, 64)), data_samples=samples)
    train_step(model, data)
    with torch.no_grad():
        results = model.eval()(**model.data_preprocessor(data, False), mode='predict')
    assert results[0].pred_score.shape == (1000,)
