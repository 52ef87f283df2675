# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
from pathlib import Path

import pytest

pytest.importorskip('mmengine')

from mmengine.config import Config

from dat_mm.commands.config import set_data_root

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
ROOTS = {
    'coco/mask-rcnn_datpp-tiny_fpn_32xb2-ms-1x_coco.py': 'coco',
    'coco/mask2former_datpp-tiny_8xb2-lsj-50e_coco-panoptic.py': 'coco',
    'ade20k/dat-tiny_upernet_8xb2-160k_ade20k-512x512.py': 'ade/ADEChallengeData2016',
    'imagenet/datpp-tiny_32xb128_in1k.py': 'imagenet',
    'shapes/mask-rcnn_datpp-nano_fpn_1xb4_shapes.py': 'shapes',
}


def load(name):
    return Config.fromfile(CONFIGS / name, import_custom_modules=False)


@pytest.mark.parametrize('name', ROOTS)
def test_one_variable_names_the_folder_of_all_data(name, monkeypatch):
    monkeypatch.delenv('DAT_MM_DATA', raising=False)
    assert load(name).data_root == f'data/{ROOTS[name]}/'
    monkeypatch.setenv('DAT_MM_DATA', '/mnt/sets')
    cfg = load(name)
    assert cfg.data_root == f'/mnt/sets/{ROOTS[name]}/'
    assert cfg.val_dataloader.dataset.data_root == cfg.data_root
    assert 'data/' not in cfg.pretty_text.replace('/mnt/sets', '')


@pytest.mark.parametrize('merged_before', [False, True])
@pytest.mark.parametrize('slash', ['', '/'])
@pytest.mark.parametrize('name', ROOTS)
def test_one_option_moves_every_path(name, slash, merged_before, monkeypatch):
    monkeypatch.delenv('DAT_MM_DATA', raising=False)
    cfg = load(name)
    if merged_before:  # as --cfg-options data_root=... leaves it
        cfg.merge_from_dict({'data_root': '/mnt/here' + slash})
    set_data_root(cfg, '/mnt/here' + slash)
    assert cfg.data_root == '/mnt/here/'
    for phase in ('train', 'val', 'test'):
        assert cfg[f'{phase}_dataloader'].dataset.data_root == '/mnt/here/'
    if 'mask-rcnn' in name:
        annotations = [cfg[f'{phase}_evaluator'].ann_file for phase in ('val', 'test')]
        assert all(path.startswith('/mnt/here/annotations/instances_val') for path in annotations)
        assert not cfg.val_dataloader.dataset.get('ann_file', '').startswith('/')  # below data_root, as it was
    assert f'data/{ROOTS[name]}' not in cfg.pretty_text


def test_a_data_set_with_a_root_of_its_own_keeps_it():
    cfg = load('coco/mask-rcnn_datpp-tiny_fpn_32xb2-ms-1x_coco.py')
    cfg.train_dataloader.dataset.data_root = '/elsewhere/'
    set_data_root(cfg, '/mnt/here')
    assert cfg.train_dataloader.dataset.data_root == '/elsewhere/'
    assert cfg.val_dataloader.dataset.data_root == '/mnt/here/'


def test_nothing_to_move_is_an_error():
    with pytest.raises(ValueError, match='no data set has a data_root'):
        set_data_root(Config(dict(train_dataloader=dict(dataset=dict(type='CocoDataset')))), '/mnt/here')
