# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Every way in refuses a checkpoint that would run code, in one line that names the file and the rule."""

import os
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmpretrain')

from dat_mm.commands.convert_checkpoint import convert_checkpoint
from dat_mm.commands.infer import load_predictor
from dat_mm.commands.prepare import prepare
from dat_mm.commands.test import test as run_test
from dat_mm.commands.train import train, train_config
from dat_mm.errors import UserError


class Code:
    """Makes the file RAN in the folder where it is read as a pickle."""

    def __reduce__(self):
        return os.system, ('touch RAN',)


def init_model(config, path):
    """As the toolboxes' own functions do it, in a process that has prepared a config."""
    from mmpretrain.apis import get_model

    return get_model(prepare(config), pretrained=str(path), device='cpu')


def start_backbone(config, path):
    key = 'model.backbone.init_cfg'
    return train(config, cfg_options=[f'{key}.type=Pretrained', f'{key}.checkpoint={path}'], work_dir='.')


WAYS = {
    '--resume FILE': lambda config, path: train_config(config, resume=str(path)),
    '--resume': lambda config, path: train(config, resume='auto', work_dir='.'),
    'load_from': lambda config, path: train(config, cfg_options=[f'load_from={path}'], work_dir='.'),
    'init_cfg': start_backbone,
    'tools/test.py': lambda config, path: run_test(config, str(path)),
    'tools/infer.py and visualize_attention.py': lambda config, path: load_predictor(config, str(path), device='cpu'),
    'tools/convert_checkpoint.py': lambda config, path: convert_checkpoint(path, 'out.pth'),
    'a function of a toolbox': init_model,
}


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('way', WAYS)
def test_every_way_in_refuses(way, zipped, tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, path = tiny_config('mmpretrain'), tmp_path / 'epoch_1.pth'
    content = {'state_dict': {'w': torch.ones(2)}, 'meta': {'iter': 1, 'epoch': 1}, 'optimizer': {}, 'x': Code()}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    if way == '--resume' and not zipped:
        pytest.skip('the older format has no checksums: such a file is passed over')
    with pytest.raises(UserError) as raised:
        WAYS[way](config, path)
    line = str(raised.value)
    assert 'epoch_1.pth is refused: it names ' in line and 'system, which could run code' in line
    assert '\n' not in line
    assert not Path('RAN').exists() and not Path('out.pth').exists()
