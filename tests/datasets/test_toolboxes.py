# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
import pickle

import numpy as np
import pytest

from dat_mm.datasets import CLASSES, SHAPES_METAINFO, SHAPES_SEGMENTATION_METAINFO

mmengine = pytest.importorskip('mmengine')

from mmengine.registry import DATASETS, DefaultScope  # noqa: E402

MAKE = {'num_train': 6, 'num_val': 3, 'size': 96}
LOAD = {'type': 'LoadImageFromFile'}
PIPELINES = {
    'mmdet': [
        LOAD,
        {'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': True},
        {'type': 'Resize', 'scale': (128, 96), 'keep_ratio': True},
        {'type': 'RandomFlip', 'prob': 0.5},
        {'type': 'PackDetInputs'},
    ],
    'mmseg': [
        LOAD,
        {'type': 'LoadAnnotations'},
        {'type': 'RandomCrop', 'crop_size': (64, 64)},
        {'type': 'PackSegInputs'},
    ],
    'mmpretrain': [
        LOAD,
        {'type': 'RandomResizedCrop', 'scale': 64},
        {'type': 'PackInputs'},
    ],
}
TYPES = {
    'mmdet': ('dat_mm.ShapesDetection', 'CocoDataset', SHAPES_METAINFO),
    'mmseg': ('dat_mm.ShapesSegmentation', 'BaseSegDataset', SHAPES_SEGMENTATION_METAINFO),
    'mmpretrain': ('dat_mm.ShapesClassification', 'CustomDataset', SHAPES_METAINFO),
}


def build(scope, **config):
    """As a config of that toolbox would."""
    pytest.importorskip(scope)
    with DefaultScope.overwrite_default_scope(scope):
        return DATASETS.build({'pipeline': PIPELINES[scope], **config})


def label_of(scope, sample):
    if scope == 'mmdet':
        return sample.gt_instances.labels
    return sample.gt_sem_seg.data if scope == 'mmseg' else sample.gt_label


@pytest.mark.parametrize('scope', TYPES)
@pytest.mark.parametrize('split', ['train', 'val'])
def test_a_config_type_makes_the_scenes_and_loads_them(scope, split, tmp_path):
    name, base, meta = TYPES[scope]
    dataset = build(scope, type=name, split=split, data_root=str(tmp_path / 'shapes'), make=MAKE)
    assert type(dataset).__name__ == base
    assert type(dataset).__module__.startswith(scope)
    assert tuple(dataset.metainfo['classes']) == meta['classes']
    count = MAKE[f'num_{split}']
    assert len(dataset) >= count if scope == 'mmpretrain' else len(dataset) == count
    seen = set()
    for item in pickle.loads(pickle.dumps(dataset)):  # as a worker process gets it
        assert item['inputs'].shape[0] == 3
        seen |= set(label_of(scope, item['data_samples']).flatten().tolist())
    assert seen - {255} <= set(range(len(meta['classes'])))
    assert len(seen) > 2


def test_masks_reduced_by_one_fit_the_boxes(tmp_path):
    """A shape has number k among the boxes and k + 1 among the masks, whose 0 is the background."""
    config = {'split': 'val', 'data_root': str(tmp_path / 'shapes'), 'make': MAKE}
    plain = [step for step in PIPELINES['mmdet'] if step['type'] not in ('Resize', 'RandomFlip')]
    boxes = build('mmdet', type='dat_mm.ShapesDetection', **{**config, 'pipeline': plain})
    plain = [step for step in PIPELINES['mmseg'] if step['type'] != 'RandomCrop']
    masks = build('mmseg', type='dat_mm.ShapesSegmentation', **{**config, 'pipeline': plain})
    for one, other in zip(boxes, masks, strict=True):
        labels = other['data_samples'].gt_sem_seg.data[0].numpy()
        truth = np.zeros_like(labels)
        instances = one['data_samples'].gt_instances
        for label, mask in zip(instances.labels.tolist(), instances.masks.masks, strict=True):
            truth[mask > 0] = label + 1
        ignored = one['data_samples'].ignored_instances
        for mask in ignored.masks.masks:
            truth[mask > 0] = 255
        assert np.array_equal(truth, labels)


@pytest.mark.parametrize('scope', TYPES)
def test_asking_for_the_names_makes_nothing(scope, tmp_path):
    name, _, meta = TYPES[scope]
    dataset = build(scope, type=name, data_root=str(tmp_path / 'shapes'), lazy_init=True)
    assert tuple(dataset.metainfo['classes']) == meta['classes']
    assert meta == DATASETS.get(name).METAINFO
    assert not (tmp_path / 'shapes').exists()


@pytest.mark.parametrize('scope', TYPES)
def test_a_typo_is_an_error_that_names_it(scope, tmp_path):
    config = {'type': TYPES[scope][0], 'data_root': str(tmp_path / 'shapes'), 'make': MAKE}
    with pytest.raises(TypeError, match='splitt'):
        build(scope, **config, splitt='val')
    with pytest.raises(ValueError, match="split='test'"):
        build(scope, **config, split='test')
    with pytest.raises(TypeError, match='num_trian'):
        build(scope, **{**config, 'make': {'num_trian': 3}})


def test_shapes_of_other_numbers_are_not_taken_for_these(tmp_path):
    config = {'type': 'dat_mm.ShapesDetection', 'data_root': str(tmp_path / 'shapes')}
    build('mmdet', **config, make=MAKE)
    with pytest.raises(FileExistsError, match='num_train=6, num_val=3, size=96, not num_train=1400'):
        build('mmdet', **config)


def test_classes_and_colours_match():
    assert len(CLASSES) == len(SHAPES_METAINFO['palette']) == 8
    assert [len(value) for value in SHAPES_SEGMENTATION_METAINFO.values()] == [9, 9]


def test_panoptic_annotations_are_made_on_first_use(tmp_path):
    pytest.importorskip('panopticapi')
    pipeline = [LOAD, {'type': 'LoadPanopticAnnotations'}, {'type': 'PackDetInputs'}]
    root = tmp_path / 'shapes'
    build('mmdet', type='dat_mm.ShapesDetection', data_root=str(root), make=MAKE)
    assert not (root / 'panoptic').exists()  # a data set that was drawn before serves as it is
    dataset = build(
        'mmdet', type='dat_mm.ShapesPanoptic', split='val', data_root=str(root), make=MAKE, pipeline=pipeline
    )
    assert type(dataset).__name__ == 'CocoPanopticDataset' and len(dataset) == MAKE['num_val']
    assert dataset.metainfo['classes'] == (*CLASSES, 'background')
    for sample in (data['data_samples'] for data in dataset):
        seen = sample.gt_sem_seg.sem_seg
        assert set(sample.gt_instances.labels.tolist()) <= set(seen.unique().tolist())
        assert len(CLASSES) in seen.unique()  # the background
        assert (seen != 255).all()
