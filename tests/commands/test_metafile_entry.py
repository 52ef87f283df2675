# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What the command prints is what the metafiles say."""

import importlib.util
import re
from pathlib import Path

import pytest

from dat_mm.commands.metafile_entry import entry
from dat_mm.errors import UserError

pytestmark = pytest.mark.one_stack

yaml = pytest.importorskip('yaml')
ROOT = Path(__file__).parents[2]
TEXTS = {path: path.read_text() for path in sorted((ROOT / 'configs').rglob('metafile.yml'))}
MODELS = {model['Config']: model for text in TEXTS.values() for model in yaml.safe_load(text)['Models']}
# A folder, a toolbox and a backbone of each kind.
CONFIGS = [
    'ade20k/datpp-tiny_upernet_8xb2-160k_ade20k-512x512',
    'ade20k/swin-tiny_upernet_8xb2-160k_ade20k-512x512',
    'coco/cascade-mask-rcnn_datpp-tiny_fpn_32xb2-ms-3x_coco',
    'coco/mask-rcnn_swin-tiny_fpn_8xb2-1x_coco',
    'coco/retinanet_dat-tiny_fpn_8xb2-1x_coco',
    'imagenet/ablation/datpp-tiny_local-P_32xb128_in1k',
    'imagenet/convnext-tiny_32xb128_in1k',
    'imagenet/datp-tiny_32xb128_in1k',
    'imagenet/datpp-base_32xb24_in1k-384px',
    'imagenet/swin-tiny_32xb128_in1k',
    'shapes/mask-rcnn_dat-nano_fpn_1xb4_shapes',
    'shapes/swin-nano_upernet_1xb8_shapes-128x128',
]


def printed_of(model):
    """What the tool prints of an entry: neither results nor what the training starts from."""
    kept = {key: value for key, value in model.items() if not key.startswith('Results')}
    return kept | {'Metadata': {key: value for key, value in model['Metadata'].items() if key != 'Pretrained From'}}


@pytest.mark.parametrize('name', CONFIGS)
def test_an_entry_is_that_of_the_metafile(name):
    """To the letter, but for FLOPs, which the metafile has from publications where there are any."""
    printed = entry(ROOT / f'configs/{name}.py')
    lines = [line for line in printed.splitlines() if 'FLOPs' not in line]
    metafile = '\n'.join(re.sub(r'\n      FLOPs: \d+', '', text) for text in TEXTS.values())
    assert '\n'.join(lines) in metafile
    (found,) = yaml.safe_load('Models:\n' + printed)['Models']
    model = MODELS[f'configs/{name}.py']
    assert ('FLOPs' in found['Metadata']) == (not name.startswith('shapes'))
    if 'Results' not in model:  # counted
        assert found == printed_of(model)


FLOPS = {
    'imagenet/swin-tiny_32xb128_in1k': 4.5e9,
    'imagenet/convnext-tiny_32xb128_in1k': 4.5e9,
    'imagenet/datpp-base_32xb24_in1k-384px': 49.7e9,
    'coco/mask-rcnn_swin-tiny_fpn_8xb2-1x_coco': 267e9,
    'ade20k/swin-tiny_upernet_8xb2-160k_ade20k-512x512': 945e9,
}


@pytest.mark.parametrize('name', FLOPS)
def test_flops_are_of_the_size_and_the_heads_that_published_ones_are_of(name):
    assert FLOPS[name] == MODELS[f'configs/{name}.py']['Metadata']['FLOPs']
    (found,) = yaml.safe_load('Models:\n' + entry(ROOT / f'configs/{name}.py'))['Models']
    assert found['Metadata']['FLOPs'] == pytest.approx(FLOPS[name], rel=0.02)


def test_tool_prints_an_entry_for_each_config(capsys):
    spec = importlib.util.spec_from_file_location('tool_metafile_entry', ROOT / 'tools/metafile_entry.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    names = [f'configs/shapes/{arch}-nano_1xb32_shapes.py' for arch in ('dat', 'datpp')]
    tool.main([str(ROOT / name) for name in names])
    assert yaml.safe_load(capsys.readouterr().out) == [printed_of(MODELS[name]) for name in names]


def test_an_unknown_backbone_or_data_set_is_told_in_one_line(tmp_path):
    base = ROOT / 'configs/shapes/dat-nano_1xb32_shapes.py'
    for name, text, message in (
        ('data', "train_dataloader = dict(dataset=dict(type='CIFAR10'))", 'data set CIFAR10 is not one of'),
        ('backbone', "model = dict(backbone=dict(_delete_=True, type='LeNet5'))", 'LeNet5 is in no collection'),
    ):
        (tmp_path / f'{name}.py').write_text(f"_base_ = '{base}'\n{text}\n")
        with pytest.raises(UserError, match=message):
            entry(tmp_path / f'{name}.py')
