# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Networks give what the toolboxes' own models predict, at any size, one image or several."""

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')

from deploy import cases

from dat_mm.commands.trained import preprocessing_of
from dat_mm.deploy.compare import differences
from dat_mm.deploy.networks import wrap
from dat_mm.errors import UserError

SIZES = [(64, 96), (75, 61), (32, 32)]
each_size = pytest.mark.parametrize('size', SIZES, ids=lambda size: 'x'.join(map(str, size)))


@pytest.fixture(scope='module')
def models():
    made = {}

    def get(kind, generation='dat'):
        key = kind, generation
        if key not in made:
            model = cases.build(kind, generation)
            made[key] = model, wrap(cases.build(kind, generation), preprocessing_of(model))
        return made[key]

    return get


def run(network, images):
    with torch.no_grad():
        return {name: value.numpy() for name, value in network(torch.from_numpy(images)).items()}


def samples(images, kind):
    """What a data loader hands to the test_step of a toolbox: pictures as BGR, and what is known of them."""

    metas = dict(img_shape=images.shape[1:3], ori_shape=images.shape[1:3], scale_factor=(1.0, 1.0), img_id=0)
    metas['batch_input_shape'] = metas['pad_shape'] = metas['img_shape']
    chw = [torch.from_numpy(image[..., ::-1].transpose(2, 0, 1).copy()) for image in images]
    return dict(inputs=chw, data_samples=[kind(metainfo=metas) for _ in chw])


@each_size
@pytest.mark.parametrize('generation', ['dat', 'datpp'])
def test_a_classifier(models, generation, size):
    from mmpretrain.structures import DataSample

    model, network = models('classifier', generation)
    images = cases.pictures(2, *size)
    data = samples(images, DataSample)
    data['inputs'] = torch.stack(data['inputs'])
    with torch.no_grad():
        expected = torch.stack([sample.pred_score for sample in model.test_step(data)])
    torch.testing.assert_close(torch.from_numpy(run(network, images)['scores']), expected)


@each_size
@pytest.mark.parametrize('kind', ['semantic-fpn', 'upernet'])
def test_a_segmentor(models, kind, size):
    from mmseg.structures import SegDataSample

    model, network = models(kind)
    images = cases.pictures(2, *size)
    found = run(network, images)
    with torch.no_grad():
        expected = model.test_step(samples(images, SegDataSample))
    labels = np.stack([sample.pred_sem_seg.data[0].numpy() for sample in expected])
    assert (found['labels'] == labels).mean() > 0.999 and len(np.unique(labels)) > 1
    assert found['logits'].shape[2] == -(-size[0] // 4)


def as_outputs(predicted, found):
    """What mmdet predicts of images, in the rows of a network's outputs."""
    rows = {name: np.zeros_like(value) for name, value in found.items() if name != 'box_masks'}
    rows['scores'] -= 1
    rows['labels'] -= 1
    for n, sample in enumerate(predicted):
        got = sample.pred_instances
        count = len(got)
        rows['boxes'][n, :count], rows['scores'][n, :count] = got.bboxes.numpy(), got.scores.numpy()
        rows['labels'][n, :count] = got.labels.numpy()
        if 'masks' in rows:
            rows['masks'][n, :count] = got.masks.numpy()
    return rows


@each_size
@pytest.mark.parametrize('generation', ['dat', 'datpp'])
@pytest.mark.parametrize('kind', ['retinanet', 'mask-rcnn', 'cascade'])
def test_a_detector(models, kind, generation, size):
    from mmdet.structures import DetDataSample

    model, network = models(kind, generation)
    images = cases.pictures(2, *size)
    found = run(network, images)
    with torch.no_grad():
        expected = as_outputs(model.test_step(samples(images, DetDataSample)), found)
    assert (expected['scores'] > 0).sum() > 10
    apart = differences(expected, found)
    assert apart['boxes'] < 1e-5 and apart['scores'] < 1e-5 and apart['labels'] == 0, apart
    assert apart.get('masks', 0) < 1e-4


@pytest.mark.parametrize('kind', ['retinanet', 'mask-rcnn'])
def test_a_detector_that_finds_nothing(models, kind):
    _, network = models(kind)
    head = getattr(network.model, 'bbox_head', None)
    cfg = head.test_cfg if head is not None else network.model.roi_head.test_cfg
    threshold, cfg.score_thr = cfg.score_thr, 2.0
    found = run(network, cases.pictures(1, 64, 64))
    cfg.score_thr = threshold
    assert (found['scores'] == -1).all() and (found['labels'] == -1).all() and not found['boxes'].any()
    assert 'masks' not in found or not found['masks'].any()


def test_a_backbone_gives_its_maps():
    from dat_mm import DAT

    backbone = DAT(cases.ARCHS['dat'], generation='dat', img_size=64, out_indices=(1, 3)).eval()
    network = wrap(backbone, cases.PLAIN)
    images = cases.pictures(2, 40, 52)
    found = run(network, images)
    with torch.no_grad():
        expected = backbone(torch.from_numpy(images).permute(0, 3, 1, 2).float())
    assert list(found) == ['stage2', 'stage4']
    for value, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(value), other)


@pytest.mark.parametrize(
    ('config', 'told'),
    [
        ('dino-3scale_dat-nano_1xb4_shapes', 'DINO with bbox_head=DINOHead has no form for export'),
        ('mask2former_dat-nano_1xb4_shapes', 'Mask2Former with panoptic_head=Mask2FormerHead has no form for export'),
    ],
)
def test_what_has_no_form_for_export_is_named(config, told):
    from mmengine.config import Config
    from mmengine.registry import MODELS, init_default_scope

    init_default_scope('mmdet')
    cfg = Config.fromfile(cases.CONFIGS / f'{config}.py')
    cfg.model.backbone.init_cfg = None
    with pytest.raises(UserError, match=told):
        wrap(MODELS.build(cfg.model), cases.PLAIN)
