# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
import types
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from dat_mm.weights import read_state_dict, write_state_dict

pytestmark = pytest.mark.one_stack

TOOL = Path(__file__).parents[1] / 'tools' / 'convert_checkpoint.py'
WEIGHTS = OrderedDict(a=torch.arange(6.0).view(2, 3), b=torch.ones(2, dtype=torch.float16))


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f'touch {self.marker}',)


@pytest.fixture
def yacs_config(monkeypatch):
    """A CfgNode as yacs makes it, which is a dict with attributes that is pickled under yacs.config."""
    module = types.ModuleType('yacs.config')

    class CfgNode(dict):
        def __init__(self, *args):
            super().__init__(*args)
            self.__dict__['__immutable__'] = True

    CfgNode.__module__, CfgNode.__qualname__ = 'yacs.config', 'CfgNode'
    module.CfgNode = CfgNode
    monkeypatch.setitem(sys.modules, 'yacs', types.ModuleType('yacs'))
    monkeypatch.setitem(sys.modules, 'yacs.config', module)
    return CfgNode({'MODEL': CfgNode({'dims': [96, 192]})})


def same(state_dict):
    return list(state_dict) == list(WEIGHTS) and all(torch.equal(state_dict[k], v) for k, v in WEIGHTS.items())


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize(
    'wrap', [lambda w: w, lambda w: {'model': w}, lambda w: {'state_dict': w, 'meta': {'epoch': 3}}]
)
def test_layouts_of_files(tmp_path, wrap, zipped):
    torch.save(wrap(WEIGHTS), tmp_path / 'a.pth', _use_new_zipfile_serialization=zipped)
    assert same(read_state_dict(tmp_path / 'a.pth'))


def test_parallel_wrappers_are_stripped(tmp_path):
    torch.save({f'module.{key}': value for key, value in WEIGHTS.items()}, tmp_path / 'a.pth')
    assert same(read_state_dict(tmp_path / 'a.pth'))


def test_what_comes_along_is_harmless(tmp_path, yacs_config):
    content = {
        'model': WEIGHTS,
        'config': yacs_config,
        'args': Namespace(lr=1.0),
        'max_accuracy': np.float64(82.0),
        'history': np.arange(3),
        'optimizer': {'state': {0: {'step': torch.tensor(1.0)}}, 'param_groups': [{'lr': 0.1, 'params': [0]}]},
    }
    torch.save(content, tmp_path / 'a.pth')
    for name in ('yacs', 'yacs.config'):
        sys.modules.pop(name)
    assert same(read_state_dict(tmp_path / 'a.pth'))


@pytest.mark.parametrize('zipped', [True, False])
def test_a_file_that_would_run_code_is_refused(tmp_path, zipped):
    marker = tmp_path / 'ran'
    torch.save({'model': WEIGHTS, 'x': Bomb(marker)}, tmp_path / 'a.pth', _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r'a\.pth is refused: it names (posix|nt)\.system, which could run code'):
        read_state_dict(tmp_path / 'a.pth')
    assert not marker.exists()


def test_checkpoints_of_a_training_are_read(tmp_path):
    """mmengine keeps the log beside the weights, and the pickle of the log names getattr. Nothing of it is called."""
    from mmengine.logging import HistoryBuffer

    log = HistoryBuffer()
    log.update(1.0)
    content = {'state_dict': {'w': torch.ones(2)}, 'message_hub': {'log_scalars': {'loss': log}, 'keys': {'loss'}}}
    torch.save(content, tmp_path / 'a.pth')
    assert read_state_dict(tmp_path / 'a.pth')['w'].tolist() == [1, 1]


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_programs_are_refused(tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(str(tmp_path / 'a.pth'))
    with pytest.raises(ValueError, match='TorchScript'):
        read_state_dict(tmp_path / 'a.pth')


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (b'', 'is not a checkpoint'),
        (b'not a checkpoint at all', '(is not a checkpoint|is refused)'),
        (None, 'no such file'),
    ],
)
def test_other_files_are_named(tmp_path, content, message):
    path = tmp_path / 'a.pth'
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=f'a.pth.*{message}'):
        read_state_dict(path)


def test_files_without_weights_are_named(tmp_path):
    torch.save([1, 2], tmp_path / 'list.pth')
    with pytest.raises(ValueError, match='holds a list and no weights'):
        read_state_dict(tmp_path / 'list.pth')
    torch.save({'epoch': 3}, tmp_path / 'dict.pth')
    with pytest.raises(ValueError, match=r'1 entries that are not tensors: epoch \(int\)'):
        read_state_dict(tmp_path / 'dict.pth')


@pytest.mark.parametrize('name', ['a.pth', 'a.safetensors'])
def test_written_files_read_back(tmp_path, name):
    write_state_dict(WEIGHTS, tmp_path / name)
    assert same(read_state_dict(tmp_path / name))
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize('name', ['a.pth', 'a.safetensors'])
def test_a_failed_write_leaves_the_old_file(tmp_path, name):
    write_state_dict(WEIGHTS, tmp_path / name)
    before = (tmp_path / name).read_bytes()
    with pytest.raises(Exception):  # noqa: B017
        write_state_dict({'a': WEIGHTS['a'], 'b': lambda: None}, tmp_path / name)
    assert (tmp_path / name).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_other_suffixes_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r'a.bin: the name must end in .pth or .safetensors'):
        write_state_dict(WEIGHTS, tmp_path / 'a.bin')


def convert(*args):
    return subprocess.run([sys.executable, str(TOOL), *map(str, args)], capture_output=True, text=True)


def test_tool(tmp_path, golden, yacs_config):
    case = golden('v1_tiny_224')
    torch.save({'model': case.state_dict(), 'config': yacs_config}, tmp_path / 'official.pth')
    result = convert(tmp_path / 'official.pth', tmp_path / 'a.pth')
    assert result.returncode == 0, result.stderr
    assert '219 tensors' in result.stdout and '28.319 M' in result.stdout and 'head 2' in result.stdout
    assert '10 index and mask buffers left out' in result.stdout
    whole = read_state_dict(tmp_path / 'a.pth')
    assert len(whole) == 209 and 'backbone.stem.conv.weight' in whole and 'head.fc.weight' in whole

    result = convert(tmp_path / 'official.pth', tmp_path / 'b.safetensors', '--backbone-only')
    assert result.returncode == 0, result.stderr
    backbone = read_state_dict(tmp_path / 'b.safetensors')
    assert backbone.keys() == {key.removeprefix('backbone.') for key in whole if key.startswith('backbone.')}


def test_tool_names_a_bad_file_and_writes_nothing(tmp_path):
    torch.save({'model': Bomb(tmp_path / 'ran')}, tmp_path / 'bad.pth')
    result = convert(tmp_path / 'bad.pth', tmp_path / 'out.pth')
    assert result.returncode == 1
    assert result.stderr.startswith('error: ') and 'bad.pth is refused' in result.stderr
    assert result.stderr.count('\n') == 1
    assert [path.name for path in tmp_path.iterdir()] == ['bad.pth']
