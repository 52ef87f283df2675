# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Each fault that is put into clean data is found, alone and with the name of its file."""

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')
pytest.importorskip('mmpretrain')

from dat_mm.commands import check_data as module
from dat_mm.commands.check_data import check_data
from dat_mm.datasets import ensure_shapes, write_mini_ade20k, write_mini_coco, write_mini_imagenet
from dat_mm.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
CONFIG = {
    'coco': CONFIGS / 'coco/mask-rcnn_datpp-tiny_fpn_32xb2-ms-1x_coco.py',
    'panoptic': CONFIGS / 'coco/mask2former_datpp-tiny_8xb2-lsj-50e_coco-panoptic.py',
    'ade': CONFIGS / 'ade20k/dat-tiny_upernet_8xb2-160k_ade20k-512x512.py',
    'imagenet': CONFIGS / 'imagenet/datpp-tiny_32xb128_in1k.py',
    'panoptic shapes': CONFIGS / 'shapes/mask2former_datpp-nano_1xb4_shapes-panoptic.py',
    'detection': CONFIGS / 'shapes/mask-rcnn_datpp-nano_fpn_1xb4_shapes.py',
    'segmentation': CONFIGS / 'shapes/dat-nano_upernet_1xb8_shapes-128x128.py',
    'classification': CONFIGS / 'shapes/dat-nano_1xb32_shapes.py',
}
FEW = dict(num_train=4, num_val=2)
COCO = 'coco/annotations/instances_train2017.json'
IMAGE = 'coco/train2017/000000000148.jpg'
ADE = 'ade/ADEChallengeData2016'
ADE_IMAGE = f'{ADE}/images/training/ADE_train_00000003.jpg'
ADE_MAP = f'{ADE}/annotations/training/ADE_train_00000003.png'
LIST = 'imagenet/meta/train.txt'
PHOTO = 'imagenet/train/n01443537/n01443537_2.JPEG'


@pytest.fixture(scope='module')
def clean(tmp_path_factory):
    root = tmp_path_factory.mktemp('clean')
    write_mini_coco(root / 'coco', num_train=3, num_val=1)
    write_mini_ade20k(root / 'ade', num_train=3, num_val=1)
    write_mini_imagenet(root / 'imagenet', num_train=1)
    ensure_shapes(root / 'shapes', **FEW)
    return root


@pytest.fixture
def data(clean, tmp_path, monkeypatch):
    """A copy of clean data, in which a test may break what it likes."""
    root = tmp_path / 'data'
    shutil.copytree(clean, root)
    monkeypatch.setenv('DAT_MM_DATA', str(root))
    return root


def options(name):
    phases = ('train', 'val', 'test')
    few = [f'{phase}_dataloader.dataset.make.{key}={value}' for phase in phases for key, value in FEW.items()]
    return few if name in ('detection', 'segmentation', 'classification', 'panoptic shapes') else []


def faults_of(name, tmp_path, **more):
    """The faults in the JSON report, whose exit status must agree."""
    out = tmp_path / 'report.json'
    is_clean = check_data(CONFIG[name], workers=1, out=out, cfg_options=options(name), **more)
    report = json.loads(out.read_text())
    assert is_clean == (not report['faults'])
    assert sum(report['counts'].values()) == len(report['faults'])
    return report['faults']


@pytest.mark.parametrize('name', CONFIG)
def test_clean_data_has_no_faults(name, data, tmp_path, capsys):
    assert faults_of(name, tmp_path) == []
    assert 'no faults in' in capsys.readouterr().out


def cut(path, by=2):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // by])


def rewrite(size=None, value=None, channels=None):
    def change(path):
        image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if size:
            image = cv2.resize(image, size, interpolation=cv2.INTER_NEAREST)
        if value is not None:
            image[10:12, 10:12] = value
        if channels:
            image = np.stack([image] * channels, axis=-1)
        cv2.imwrite(str(path), image)

    return change


FILES = [
    ('coco', IMAGE, os.unlink, 'missing file', 'no such file'),
    ('coco', IMAGE, lambda path: path.write_bytes(b''), 'empty file', '0 bytes'),
    ('coco', IMAGE, cut, 'corrupt image', 'cut off'),
    ('coco', IMAGE, lambda path: path.write_bytes(path.read_bytes()[:-2]), 'corrupt image', 'cut off'),
    ('coco', IMAGE, lambda path: path.write_text('<html>not found</html>'), 'corrupt image', 'begins like no image'),
    ('coco', IMAGE, rewrite(size=(50, 40)), 'image size', 'is 50 x 40 pixels'),
    ('coco', COCO, os.unlink, 'missing file', 'no such file'),
    ('coco', COCO, lambda path: path.write_bytes(b''), 'empty file', '0 bytes'),
    ('coco', COCO, cut, 'no JSON', 'line 1, column'),
    ('coco', COCO, lambda path: path.write_text('{\n"images": [\n}'), 'no JSON', 'line 3, column 1'),
    ('coco', COCO, lambda path: path.write_text('[' * 100_000), 'no JSON', 'nested too deeply'),
    ('ade', ADE_IMAGE, os.unlink, 'missing file', 'ADE_train_00000003.png is its map'),
    ('ade', ADE_IMAGE, cut, 'corrupt image', 'cut off'),
    ('ade', ADE_MAP, os.unlink, 'missing map', 'ADE_train_00000003.jpg'),
    ('ade', ADE_MAP, cut, 'corrupt map', 'cut off'),
    ('ade', ADE_MAP, rewrite(size=(50, 40)), 'map size', 'is 50 x 40 pixels'),
    ('ade', ADE_MAP, rewrite(value=151), 'label beyond the classes', '151, in 4 pixels'),
    ('ade', ADE_MAP, rewrite(channels=3), 'map of channels', 'has 3 channels'),
    ('imagenet', PHOTO, os.unlink, 'missing file', 'no such file'),
    ('imagenet', PHOTO, cut, 'corrupt image', 'cut off'),
    ('imagenet', LIST, os.unlink, 'unknown class', 'has 10 folders, and the data set 1000 classes'),
    ('imagenet', LIST, lambda path: path.write_bytes(b''), 'empty file', '0 bytes'),
    ('segmentation', 'shapes/masks/val/000002.png', rewrite(value=10), 'label beyond the classes', '10, in 4 pixels'),
    ('classification', 'shapes/imagenet/train/blob', Path.mkdir, 'unknown class', 'of no class'),
]


@pytest.mark.parametrize(('name', 'file', 'spoil', 'kind', 'what'), FILES)
def test_a_bad_file_is_found(name, file, spoil, kind, what, data, tmp_path, capsys):
    spoil(data / file)
    found = faults_of(name, tmp_path)
    where = file if file != LIST or kind == 'empty file' else 'imagenet/train'
    assert [(fault['file'].rstrip('/'), fault['kind']) for fault in found] == [(str(data / where), kind)]
    assert what in found[0]['what']
    assert f'{data / where}' in capsys.readouterr().out


def test_lines_of_a_list(data, tmp_path):
    with (data / LIST).open('a') as file:
        file.write('\nn01443537/n01443537_2.JPEG 1000\nn01443537/n01443537_2.JPEG x\nn01443537/none.JPEG 1\n')
    found = [(fault['kind'], fault['what'][:8]) for fault in faults_of('imagenet', tmp_path)]
    assert found == [
        ('line of a list', 'line 11 '),
        ('unknown class', 'line 12 '),
        ('unknown class', 'line 13 '),
        ('missing file', 'no such '),
    ]


def edit(part, place=0, **values):
    def change(content):
        content[part][place].update(values)

    return change


def repeat(part):
    return lambda content: content[part].append(dict(content[part][-1]))


def without(part, key, place=0):
    return lambda content: content[part][place].pop(key)


HOLE = dict(size=[128, 128], counts=[1, 2, 3])
ANNOTATIONS = [
    (edit('annotations', bbox=[500, 500, 10, 10]), 'box outside its image', 'wholly outside'),
    (edit('annotations', bbox=[-3, 5, 20, 20]), 'box partly outside its image', 'out by 3 pixels'),
    (edit('annotations', bbox=[5, 5, 0, 10]), 'box without area', '[5, 5, 0, 10]'),
    (edit('annotations', bbox=[5, 5, 10, -1]), 'box without area', '[5, 5, 10, -1]'),
    (edit('annotations', bbox=[float('nan'), 5, 10, 10]), 'box', '[nan, 5, 10, 10]'),
    (edit('annotations', bbox=[5, 5, float('inf'), 10]), 'box', '[5, 5, inf, 10]'),
    (edit('annotations', bbox=[5, 5, 10**400, 10]), 'box', 'not four finite numbers'),
    (edit('annotations', bbox='5 5 10 10'), 'box', "'5 5 10 10'"),
    (without('annotations', 'bbox'), 'box', 'None'),
    (edit('annotations', area=0), 'area', 'area is 0'),
    (edit('annotations', iscrowd=2), 'iscrowd', 'iscrowd is 2'),
    (edit('annotations', category_id=12), 'unknown category', 'category_id is 12'),
    (edit('annotations', category_id=[1]), 'structure', 'category_id is [1]'),
    (edit('annotations', image_id=7), 'unknown image', 'image_id is 7'),
    (repeat('annotations'), 'duplicate id', 'annotation'),
    (repeat('images'), 'duplicate id', 'image 440'),
    (edit('images', width=0), 'size of an image', '0 and'),
    (edit('images', file_name=3), 'file name', 'file_name is 3'),
    (edit('categories', 2, name='vehicle'), 'class of no category', "'car'"),
    (lambda content: content['categories'].reverse(), 'order of categories', "'toothbrush'"),
    (edit('annotations', segmentation=[[1, 2, 3, 4]]), 'segmentation', '4 numbers'),
    (edit('annotations', segmentation=[[1, 2, 3, 4, 5, 6, 7]]), 'segmentation', '7 numbers'),
    (edit('annotations', segmentation=[[1, 2, 3, 4, 5, float('nan')]]), 'segmentation', 'other values'),
    (edit('annotations', segmentation=[[1, 2, 3, 4, 5, 1e9]]), 'segmentation', 'other values'),
    (edit('annotations', segmentation=HOLE), 'segmentation', 'run'),
    (edit('annotations', segmentation=dict(size=[128], counts='0')), 'segmentation', 'the size of a run length'),
    (without('annotations', 'segmentation'), 'segmentation', 'neither polygons nor a run length'),
    (lambda content: content.pop('annotations'), 'structure', "'annotations' is missing"),
    (lambda content: content['images'].append(5), 'structure', 'image 3'),
]


@pytest.mark.parametrize(('spoil', 'kind', 'what'), ANNOTATIONS)
def test_a_bad_annotation_is_found(spoil, kind, what, data, tmp_path):
    content = json.loads((data / COCO).read_text())
    spoil(content)
    (data / COCO).write_text(json.dumps(content))
    found = faults_of('coco', tmp_path, phases='train')
    assert [(fault['file'], fault['kind']) for fault in found] == [(str(data / COCO), kind)]
    assert what in found[0]['what']
    assert '\n' not in found[0]['what']


def test_a_category_that_is_no_class(data, tmp_path):
    """Its objects would be dropped without a word, as where a config lacks the names of the classes."""
    content = json.loads((data / COCO).read_text())
    content['categories'].append(dict(id=99, name='unicorn'))
    content['annotations'][0]['category_id'] = 99
    (data / COCO).write_text(json.dumps(content))
    (found,) = faults_of('coco', tmp_path)
    assert found['kind'] == 'category of no class'
    assert "'unicorn'" in found['what'] and '1 objects' in found['what']


def test_processes_find_the_same(data, tmp_path, monkeypatch, capsys):
    for path in (data / 'shapes/images/train').glob('*.jpg'):
        cut(path)
    monkeypatch.setattr(module, 'CHUNK', 1)
    out, reports = tmp_path / 'report.json', []
    for workers in (1, 2):
        more = dict(phases='train', show=1, cfg_options=options('detection'))
        assert not check_data(CONFIG['detection'], workers=workers, out=out, **more)
        reports.append(json.loads(out.read_text())['faults'])
    assert len(reports[0]) == 4 and reports[0] == reports[1]
    text = capsys.readouterr().out
    assert text.count('corrupt or cut off') == 2 and '... and 3 more: corrupt image' in text


def test_wrong_options_are_told(data, tmp_path):
    with pytest.raises(UserError, match=r'--phases train,valid: .* has data for train,val,test'):
        check_data(CONFIG['coco'], phases='train,valid')
    with pytest.raises(UserError, match='--workers 0: at least 1'):
        check_data(CONFIG['coco'], workers=0)


PANOPTIC = 'coco/annotations/panoptic_train2017'
SEGMENTS = f'{PANOPTIC}/000000000148.png'


def edited(change):
    def damage(root):
        path = root / f'{PANOPTIC}.json'
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return damage


def painted(root):
    picture = cv2.imread(str(root / SEGMENTS))
    picture[:2] = (1, 2, 3)  # blue, green, red
    cv2.imwrite(str(root / SEGMENTS), picture)


PANOPTIC_DAMAGE = {
    'missing map': (lambda root: (root / SEGMENTS).unlink(), SEGMENTS, 'no such file; it is the map of'),
    'corrupt map': (lambda root: (root / SEGMENTS).write_bytes(b'no PNG'), SEGMENTS, 'is corrupt or cut off'),
    'map of channels': (
        lambda root: cv2.imwrite(str(root / SEGMENTS), np.zeros((128, 128), np.uint8)),
        SEGMENTS,
        'has three colours',
    ),
    'unknown segment': (painted, SEGMENTS, 'segment 66051 is one of 1 that no annotation has'),
    'segment without pixels': (
        edited(lambda content: content['annotations'][0]['segments_info'][0].update(id=77)),
        SEGMENTS,
        'segment 77 is one of 1 that no pixel has',
    ),
    'unknown category': (
        edited(lambda content: content['annotations'][0]['segments_info'][0].update(category_id=999)),
        f'{PANOPTIC}.json',
        'category_id is 999',
    ),
    'unknown image': (edited(lambda content: content['annotations'].pop(0)), f'{PANOPTIC}.json', 'has no annotation'),
    'structure': (edited(lambda content: content.pop('categories')), f'{PANOPTIC}.json', "'categories' is None"),
    'no JSON': (lambda root: (root / f'{PANOPTIC}.json').write_text('{'), f'{PANOPTIC}.json', 'is no JSON'),
}


@pytest.mark.parametrize('kind', PANOPTIC_DAMAGE)
def test_faults_of_panoptic_data_are_found(kind, data, tmp_path):
    damage, file, what = PANOPTIC_DAMAGE[kind]
    damage(data)
    found = [fault for fault in faults_of('panoptic', tmp_path, phases='train') if fault['kind'] == kind]
    assert found and found[0]['file'] == str(data / file) and what in found[0]['what']
