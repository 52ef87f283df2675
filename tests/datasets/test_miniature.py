# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
import hashlib
import json
import re

import cv2
import numpy as np
import pytest

from dat_mm.datasets import write_mini_ade20k, write_mini_coco, write_mini_imagenet
from dat_mm.datasets.miniature import main

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')

from mmengine.registry import DATASETS, DefaultScope

WRITERS = [write_mini_coco, write_mini_ade20k, write_mini_imagenet]
USUAL_COCO_PIPELINE = [
    {'type': 'LoadImageFromFile'},
    {'type': 'LoadAnnotations', 'with_bbox': True, 'with_mask': True},
    {'type': 'RandomChoiceResize', 'scales': [(160, 96), (160, 128)], 'keep_ratio': True},
    {'type': 'RandomFlip', 'prob': 0.5},
    {'type': 'PackDetInputs'},
]
USUAL_ADE_PIPELINE = [
    {'type': 'LoadImageFromFile'},
    {'type': 'LoadAnnotations', 'reduce_zero_label': True},
    {'type': 'RandomResize', 'scale': (256, 96), 'ratio_range': (1.0, 2.0), 'keep_ratio': True},
    {'type': 'RandomCrop', 'crop_size': (64, 64), 'cat_max_ratio': 0.75},
    {'type': 'PhotoMetricDistortion'},
    {'type': 'PackSegInputs'},
]
USUAL_IMAGENET_PIPELINE = [
    {'type': 'LoadImageFromFile'},
    {'type': 'RandomResizedCrop', 'scale': 64, 'backend': 'pillow', 'interpolation': 'bicubic'},
    {'type': 'PackInputs'},
]


def digest(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob('*')
        if path.is_file()
    }


def build(scope, **config):
    with DefaultScope.overwrite_default_scope(scope):
        return DATASETS.build(config)


@pytest.mark.parametrize('write', WRITERS)
def test_same_seed_same_bytes(write, tmp_path):
    first, second, third = (write(tmp_path / str(k), seed=k // 2) for k in range(3))
    assert digest(first) == digest(second)
    assert digest(first).keys() == digest(third).keys()
    assert digest(first) != digest(third)


def test_coco_has_the_layout_and_loads(tmp_path):
    root = write_mini_coco(tmp_path / 'coco')
    for split, count in (('train', 8), ('val', 4)):
        content = json.loads((root / 'annotations' / f'instances_{split}2017.json').read_text())
        ids = [category['id'] for category in content['categories']]
        assert len(ids) == 80
        assert (ids[0], ids[11], ids[-1]) == (1, 13, 90)  # 12 is not used
        assert content['categories'][0]['name'] == 'person'
        assert content['categories'][-1]['name'] == 'toothbrush'
        names = sorted(path.name for path in (root / f'{split}2017').iterdir())
        assert names == [f'{image["id"]:012d}.jpg' for image in content['images']]
        dataset = build(
            'mmdet',
            type='CocoDataset',
            data_root=f'{root}/',
            ann_file=f'annotations/instances_{split}2017.json',
            data_prefix={'img': f'{split}2017/'},
            filter_cfg={'filter_empty_gt': True, 'min_size': 32},
            pipeline=USUAL_COCO_PIPELINE,
        )
        assert len(dataset) == count
        for item in dataset:
            instances = item['data_samples'].gt_instances
            assert len(instances.bboxes) == len(instances.masks)
            assert set((instances.labels % 11).tolist()) <= {0}


def test_ade20k_has_the_layout_and_loads(tmp_path):
    root = write_mini_ade20k(tmp_path / 'ade') / 'ADEChallengeData2016'
    values = set()
    for part, split, count in (('training', 'train', 8), ('validation', 'val', 4)):
        images = sorted(path.stem for path in (root / 'images' / part).glob('*.jpg'))
        assert images == [f'ADE_{split}_{k:08d}' for k in range(1, count + 1)]
        for path in (root / 'annotations' / part).glob('*.png'):
            masks = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            assert masks.ndim == 2
            values |= set(np.unique(masks).tolist())
        dataset = build(
            'mmseg',
            type='ADE20KDataset',
            data_root=str(root),
            data_prefix={'img_path': f'images/{part}', 'seg_map_path': f'annotations/{part}'},
            pipeline=USUAL_ADE_PIPELINE,
        )
        assert len(dataset) == count
        for item in dataset:
            assert item['inputs'].shape == (3, 64, 64)
    assert {0, 1, 150} <= values <= set(range(151))


def test_imagenet_has_the_layout_and_loads(tmp_path):
    root = write_mini_imagenet(tmp_path / 'imagenet')
    patterns = {'train': r'(n\d{8})/\1_\d+\.JPEG', 'val': r'n\d{8}/ILSVRC2012_val_\d{8}\.JPEG'}
    for split, count in (('train', 20), ('val', 10)):
        files = [path.relative_to(root / split).as_posix() for path in (root / split).rglob('*.JPEG')]
        assert len(files) == count
        assert all(re.fullmatch(patterns[split], name) for name in files)
        dataset = build(
            'mmpretrain',
            type='ImageNet',
            data_root=str(root),
            split=split,
            pipeline=USUAL_IMAGENET_PIPELINE,
        )
        assert len(dataset) == count
        assert len(dataset.metainfo['classes']) == 1000
        assert {item['data_samples'].gt_label.item() for item in dataset} == {*range(9), 999}


def test_command_line(tmp_path, capsys):
    main(['ade20k', str(tmp_path / 'ade')])
    assert capsys.readouterr().out.strip() == str(tmp_path / 'ade')
    with pytest.raises(SystemExit) as stop:
        main(['imagenet', str(tmp_path / 'ade')])
    assert stop.value.code == 1
    assert 'kind=mini ade20k' in capsys.readouterr().err


def test_panoptic_maps_say_what_the_instances_say(tmp_path):
    root = write_mini_coco(tmp_path / 'coco', num_train=3, num_val=1)
    instances, panoptic = (
        json.loads((root / f'annotations/{kind}_train2017.json').read_text()) for kind in ('instances', 'panoptic')
    )
    assert panoptic['images'] == instances['images']
    kinds = [category['isthing'] for category in panoptic['categories']]
    assert kinds == [1] * 80 + [0] * 53
    names = {category['id']: category['name'] for category in panoptic['categories']}
    assert len(names) == 133 and names[187] == 'sky-other-merged' and names[200] == 'rug-merged'
    for annotation in panoptic['annotations']:
        picture = cv2.imread(str(root / 'annotations/panoptic_train2017' / annotation['file_name']))[..., ::-1]
        ids = picture.astype(int) @ [1, 256, 65536]
        stuff, *things = annotation['segments_info']
        assert (stuff['category_id'], stuff['iscrowd']) == (187, 0)
        assert sorted(np.unique(ids)) == [segment['id'] for segment in (stuff, *things)]
        for segment in (stuff, *things):
            assert (ids == segment['id']).sum() == segment['area']
        objects = [record for record in instances['annotations'] if record['image_id'] == annotation['image_id']]
        for thing, record in zip(things, objects, strict=True):
            for key in ('category_id', 'iscrowd', 'bbox', 'area'):
                assert thing[key] == record[key]


def test_mmdet_loads_the_panoptic_miniature(tmp_path):
    pytest.importorskip('panopticapi')
    root = write_mini_coco(tmp_path / 'coco', num_train=3, num_val=1)
    dataset = build(
        'mmdet',
        type='CocoPanopticDataset',
        data_root=str(root),
        ann_file='annotations/panoptic_val2017.json',
        data_prefix=dict(img='val2017/', seg='annotations/panoptic_val2017/'),
        test_mode=True,
        pipeline=[{'type': 'LoadImageFromFile'}, {'type': 'LoadPanopticAnnotations'}, {'type': 'PackDetInputs'}],
    )
    sample = dataset[0]['data_samples']
    labels = sample.gt_sem_seg.sem_seg.unique().tolist()
    assert 119 in labels  # sky
    masks = sample.gt_instances.masks.masks
    assert len(masks) == len(sample.gt_instances) > 0
    for mask, label in zip(masks, sample.gt_instances.labels.tolist(), strict=True):
        assert (sample.gt_sem_seg.sem_seg[0].numpy()[mask > 0] == label).all()
