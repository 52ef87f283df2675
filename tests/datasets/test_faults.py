# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Each thing that can be wrong with data is found, by its kind, and nothing else is."""

import json

import numpy as np
import pytest
from PIL import Image

from dat_mm.datasets.faults import coco_faults, sample_faults, sizes_differ


@pytest.fixture
def image(tmp_path):
    path = tmp_path / 'a.jpg'
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return path


def kinds(faults):
    return [fault.kind for fault in faults]


def test_a_good_image_has_no_fault(image):
    assert sample_faults(image, (40, 60)) == []


@pytest.mark.parametrize(
    ('change', 'kind', 'text'),
    [
        (lambda path: path.unlink(), 'missing file', 'is not there'),
        (lambda path: path.write_bytes(b''), 'empty file', 'is empty'),
        (lambda path: path.write_bytes(path.read_bytes()[:-300]), 'damaged image', 'truncated'),
        (lambda path: path.write_bytes(b'no image at all'), 'damaged image', 'cannot identify'),
    ],
)
def test_a_damaged_image_is_found(image, change, kind, text):
    change(image)
    (fault,) = sample_faults(image, (40, 60))
    assert (fault.kind, fault.file) == (kind, str(image)) and text in fault.text


def test_an_image_of_another_size_is_found(image):
    (fault,) = sample_faults(image, (60, 40))
    assert str(fault) == f'{image}: the image is 60x40, and its annotations say 40x60'


@pytest.mark.parametrize(
    ('values', 'kind'),
    [
        (np.full((40, 60), 3), None),
        (np.full((40, 60), 255), None),
        (np.full((40, 60), 5), 'unknown class'),
        (np.zeros((60, 40)), 'segmentation map of another size'),
        (None, 'missing file of a segmentation map'),
    ],
)
def test_a_segmentation_map_is_checked(image, tmp_path, values, kind):
    path = tmp_path / 'a.png'
    if values is not None:
        Image.fromarray(values.astype(np.uint8)).save(path)
    found = sample_faults(image, None, path, classes=4, ignored=(0, 255))
    assert kinds(found) == ([kind] if kind else [])
    assert all(fault.file == str(path) for fault in found)


def content():
    return dict(
        images=[dict(id=1, file_name='a.jpg', height=40, width=60), dict(id=2, file_name='b.jpg', height=40, width=60)],
        categories=[dict(id=7, name='cat'), dict(id=9, name='dog')],
        annotations=[
            dict(id=1, image_id=1, category_id=7, bbox=[1, 2, 30, 20], area=600, segmentation=[[1, 2, 31, 2, 31, 22]]),
            dict(id=2, image_id=2, category_id=9, bbox=[0, 0, 60.5, 40], area=2400, iscrowd=1,
                 segmentation=dict(size=[40, 60], counts=[0, 2400])),
        ],
    )  # fmt: skip


def change(**values):
    def do(found):
        found['annotations'][0].update(values)

    return do


FAULTS = {
    'box outside the image': change(bbox=[50, 2, 30, 20]),
    'zero area': change(bbox=[1, 2, 0, 20]),
    'box that is not finite': change(bbox=[1, float('nan'), 30, 20]),
    'no box': change(bbox=[1, 2, 30]),
    'unknown class': change(category_id=8),
    'annotation of no image': change(image_id=5),
    'no outline': change(segmentation=[[1, 2, 3, 4]]),
    'outline that is not finite': change(segmentation=[[1, 2, 3, 4, float('inf'), 4]]),
    'mask of another size': change(segmentation=dict(size=[60, 40], counts=[0, 2400])),
    'number of an image twice': lambda found: found['images'][1].update(id=1),
    'number of an annotation twice': lambda found: found['annotations'][1].update(id=1),
    'image without a size': lambda found: found['images'][1].update(height=0),
    'image without id or file name': lambda found: found['images'][1].pop('file_name'),
    'annotation without content': lambda found: found['annotations'].append(3),
    'category without id or name': lambda found: found['categories'].append('bird'),
}


def test_good_annotations_have_no_fault(tmp_path):
    (tmp_path / 'a.json').write_text(json.dumps(content()))
    assert list(coco_faults(tmp_path / 'a.json', ('cat', 'dog'))) == []


@pytest.mark.parametrize('kind', FAULTS)
def test_a_fault_of_annotations_is_found(kind, tmp_path):
    found = content()
    FAULTS[kind](found)
    (tmp_path / 'a.json').write_text(json.dumps(found))
    faults = list(coco_faults(tmp_path / 'a.json', ('cat', 'dog')))
    follows = 'annotation of no image'  # of an image that cannot be used, or whose id is another's
    assert [name for name in kinds(faults) if name != follows or kind == follows] == [kind]
    assert all(fault.file == str(tmp_path / 'a.json') for fault in faults)


def test_classes_that_the_config_has_not_are_found(tmp_path):
    (tmp_path / 'a.json').write_text(json.dumps(content()))
    (fault,) = coco_faults(tmp_path / 'a.json', ('cat',))
    assert fault.text == "annotation 2 of b.jpg: the class 'dog' is not one of the config"
    assert 'none of its categories is a class' in next(coco_faults(tmp_path / 'a.json', ('car',))).text


@pytest.mark.parametrize(
    ('text', 'kind', 'told'),
    [
        ('', 'empty file', 'is empty'),
        ('{"images": [', 'no annotations', 'it is no JSON: Expecting value: line 1 column 13'),
        ('[]', 'no annotations', "it has no list 'images'"),
        ('{"images": [], "annotations": {}}', 'no annotations', "it has no list 'annotations'"),
        (None, 'missing file', 'is not there'),
    ],
)
def test_files_that_are_no_annotations_are_told(text, kind, told, tmp_path):
    if text is not None:
        (tmp_path / 'a.json').write_text(text)
    (fault,) = coco_faults(tmp_path / 'a.json')
    assert fault.kind == kind and told in fault.text


def test_a_loaded_map_must_have_the_size_of_its_image():
    image = np.zeros((4, 6, 3))
    assert sizes_differ(dict(img=image, gt_seg_map=np.zeros((4, 6)))) is None
    assert sizes_differ(dict(img=image)) is None
    assert 'map m.png is 4x6, and the image 6x4' in sizes_differ(
        dict(img=image, gt_seg_map=np.zeros((6, 4)), seg_map_path='m.png')
    )
