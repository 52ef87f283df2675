# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Checkpoints are written whole, and one that is not whole is recognised."""

import os
import pickle
from collections import Counter, OrderedDict, deque

import pytest
import torch

pytest.importorskip('mmengine')

from dat_mm.engine.checkpoint_hook import CheckpointHook
from dat_mm.engine.checkpoints import (
    INTERRUPTED,
    is_whole,
    latest_checkpoint,
    note_last,
    open_checkpoint,
    read_meta,
    read_safely,
)
from dat_mm.errors import UserError
from dat_mm.weights import written_whole


def write(folder, name, age):
    path = folder / name
    torch.save({'state_dict': {'a': torch.arange(1000.0)}, 'meta': {'iter': age}}, path)
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def cut(path):
    path.write_bytes(path.read_bytes()[:-700])


def alter(path):
    content = bytearray(path.read_bytes())
    content[content.index(torch.arange(1000.0).numpy().tobytes()[:400]) + 200] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b'')


@pytest.mark.parametrize('damage', [cut, alter, empty])
def test_a_damaged_checkpoint_is_passed_over(damage, tmp_path):
    first, second, third = (write(tmp_path, f'epoch_{i}.pth', 10 - i) for i in (1, 2, 3))
    note_last(tmp_path, third.name)
    assert latest_checkpoint(tmp_path) == third
    damage(third)
    lines = []
    assert latest_checkpoint(tmp_path, lines.append) == second
    assert lines == [f'{third} is cut off or altered and is passed over']
    damage(second)
    damage(first)
    assert latest_checkpoint(tmp_path) is None


def test_the_note_decides_and_may_be_damaged(tmp_path):
    first, second = write(tmp_path, 'iter_1.pth', 2), write(tmp_path, 'iter_2.pth', 1)
    assert latest_checkpoint(tmp_path) == second
    note_last(tmp_path, first.name)
    assert latest_checkpoint(tmp_path) == first
    (tmp_path / 'last_checkpoint').write_bytes(b'\xff\xfe\x00')
    assert latest_checkpoint(tmp_path) == second
    (tmp_path / 'last_checkpoint').write_text('')
    assert latest_checkpoint(tmp_path) == second
    third = write(tmp_path, INTERRUPTED, 0)
    assert latest_checkpoint(tmp_path) == third


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / 'a.pth'
    path.write_text('old')
    with pytest.raises(OSError, match='full'), written_whole(path) as partial:
        partial.write_text('half')
        raise OSError('the disk is full')
    assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]
    with written_whole(path) as partial:
        partial.write_text('new')
    assert path.read_text() == 'new' and list(tmp_path.iterdir()) == [path]


def test_a_file_is_safe_on_the_disk_before_it_gets_its_name(monkeypatch, tmp_path):
    """And its name is there for good before anything is removed."""
    happened, sync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, 'fsync', lambda handle: (happened.append(os.fstat(handle).st_ino), sync(handle)))
    monkeypatch.setattr(os, 'replace', lambda *names: (happened.append('named'), replace(*names)))
    path = tmp_path / 'a.pth'
    with written_whole(path) as partial:
        partial.write_text('new')
    assert happened == [path.stat().st_ino, 'named', tmp_path.stat().st_ino]


def test_whole_files_are_whole(tmp_path):
    assert is_whole(write(tmp_path, 'a.pth', 0))
    assert not is_whole(tmp_path / 'none.pth')


class _Runner:
    """What the hook asks of a runner; saving can be made to fail."""

    def __init__(self, folder):
        self.work_dir, self.fails, self.message_hub = str(folder), False, self
        self.epoch = 0

    def update_info(self, *args):
        pass

    def save_checkpoint(self, out_dir, filename, *args, **options):
        if self.fails:
            raise OSError('full')
        (self.folder / filename).write_text('x')


def test_old_checkpoints_go_after_the_new_one_is_safe(tmp_path):
    """mmengine removes the oldest first, so that a failed save left none."""
    from mmengine.fileio import get_file_backend

    hook, runner = CheckpointHook(interval=1, max_keep_ckpts=1), _Runner(tmp_path)
    runner.folder = tmp_path
    hook.out_dir, hook.file_backend = str(tmp_path), get_file_backend(str(tmp_path))
    hook.last_ckpt, hook.best_ckpt_path, hook.keep_ckpt_ids = None, None, deque()
    hook._save_checkpoint_with_step(runner, 1, {})
    (tmp_path / INTERRUPTED).write_text('x')
    runner.fails = True
    with pytest.raises(OSError):
        hook._save_checkpoint_with_step(runner, 2, {})
    assert (tmp_path / 'epoch_1.pth').exists() and (tmp_path / INTERRUPTED).exists()
    runner.fails = False
    hook._save_checkpoint_with_step(runner, 3, {})
    assert not (tmp_path / INTERRUPTED).exists()
    assert (tmp_path / 'epoch_3.pth').exists()


def test_only_the_first_process_gives_a_file_its_name(monkeypatch, tmp_path):
    """The others see the file that it is still writing, where they share a disk, and must leave it alone."""
    from dat_mm.engine import runner as module

    monkeypatch.setattr(module.MMEngineRunner, 'save_checkpoint', lambda *args, **options: None)
    runner = module.Runner.__new__(module.Runner)
    (tmp_path / '.a.pth').write_text('half of it')
    for main in (False, True):
        monkeypatch.setattr(module, 'is_main_process', lambda main=main: main)
        runner.save_checkpoint(str(tmp_path), 'a.pth')
        assert (tmp_path / 'a.pth').exists() == main


def training(**meta):
    model = OrderedDict(w=torch.ones(2))
    model._metadata = OrderedDict({'': {'version': 2}})
    return {'state_dict': model, 'optimizer': {}, 'meta': {'iter': 4, 'epoch': 1, 'seed': 3, **meta}}


@pytest.fixture
def mmengine_loads(monkeypatch):
    """How mmengine, and each toolbox on it, reads a checkpoint, once a Runner or a command was made."""
    from mmengine.runner import CheckpointLoader

    monkeypatch.setattr(CheckpointLoader, '_schemes', dict(CheckpointLoader._schemes))
    read_safely()
    return CheckpointLoader.load_checkpoint


class Code:
    """Makes the file RAN in the folder where it is read as a pickle."""

    def __reduce__(self):
        return os.system, ('touch RAN',)


@pytest.mark.parametrize('place', ['state_dict', 'meta', 'optimizer', 'message_hub'])
@pytest.mark.parametrize('address', ['a.pth', 'http://host/a.pth', 'https://host/a.pth', 's3://host/a.pth'])
def test_mmengine_runs_nothing_wherever_a_file_comes_from(address, place, mmengine_loads, tmp_path, monkeypatch):
    from mmengine.fileio import LocalBackend, io

    class Store(LocalBackend):
        """An object store that has its files in the current folder."""

        def get_local_path(self, filepath):
            return super().get_local_path(filepath.rpartition('/')[2])

    monkeypatch.setitem(io.prefix_to_backends, 's3', Store)
    monkeypatch.setattr(io, 'backend_instances', {})
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'hub'))
    monkeypatch.setattr(torch.hub, 'download_url_to_file', lambda url, path: os.link('a.pth', path))
    monkeypatch.chdir(tmp_path)
    content = training()
    torch.save(content, 'a.pth')
    assert torch.equal(mmengine_loads(address)['state_dict']['w'], torch.ones(2))
    for path in tmp_path.rglob('a.pth'):
        path.unlink()
    content.setdefault(place, {})['x'] = Code()
    torch.save(content, 'a.pth')
    with pytest.raises(UserError, match=r'is refused: it names (posix|nt)\.system, which could run code'):
        mmengine_loads(address)
    assert not (tmp_path / 'RAN').exists()


def test_mmengine_gets_no_program_in_the_text_of_a_config(mmengine_loads, tmp_path):
    """Runner.resume runs the text that old checkpoints have there, to look up a number of GPUs in it."""
    torch.save(training(config='import os; os.system("touch RAN")', cfg='x = 1'), tmp_path / 'a.pth')
    meta = mmengine_loads(str(tmp_path / 'a.pth'))['meta']
    assert 'config' not in meta and meta['cfg'] == 'x = 1'


def test_what_mmengine_gets_is_what_was_saved(mmengine_loads, tmp_path):
    """The milestones of a schedule are a Counter, the versions of modules an attribute, and tied weights are one."""
    content = training()
    content['state_dict']['tied'] = content['state_dict']['w']
    content['param_schedulers'] = [{'milestones': Counter([8, 11, 11])}]
    torch.save(content, tmp_path / 'a.pth')
    found = mmengine_loads(str(tmp_path / 'a.pth'), map_location='cpu')
    assert found['param_schedulers'] == content['param_schedulers']
    assert type(found['param_schedulers'][0]['milestones']) is Counter
    assert found['state_dict']._metadata == {'': {'version': 2}}
    found['state_dict']['w'][0] = 5
    assert found['state_dict']['tied'][0] == 5
    assert torch.equal(open_checkpoint(tmp_path / 'a.pth')['state_dict']['w'], torch.ones(2))


def test_the_statistics_of_logs_are_those_of_mmengine(tmp_path):
    """A HistoryBuffer is saved with its methods, and would put those of a file into its class."""
    from mmengine.logging import HistoryBuffer

    log, own = HistoryBuffer(), dict(HistoryBuffer._statistics_methods)
    log.update(0.5)
    torch.save({'log': log}, tmp_path / 'a.pth')
    log._statistics_methods = {'mean': torch.float32}
    torch.save({'log': log}, tmp_path / 'b.pth')
    for name in 'ab':
        found = open_checkpoint(tmp_path / f'{name}.pth')['log']
        assert type(found) is HistoryBuffer and found.statistics('mean') == 0.5
    assert HistoryBuffer._statistics_methods == own
    found.update(1.5)
    assert pickle.loads(pickle.dumps(found)).statistics('mean') == 1.0


@pytest.mark.parametrize(
    ('key', 'value'), [('iter', '4'), ('iter', -1), ('epoch', None), ('seed', [0]), ('group', 2.5), ('total_batch', {})]
)
def test_the_numbers_of_a_training_are_numbers(key, value, tmp_path):
    torch.save(training(**{key: value}), tmp_path / 'a.pth')
    with pytest.raises(UserError, match=f'is refused: {key} in its meta is not a number'):
        read_meta(tmp_path / 'a.pth')


def test_what_only_looks_like_a_checkpoint_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / 'epoch_9.pth')
    os.mkfifo(tmp_path / 'last_checkpoint')
    path = write(tmp_path, 'epoch_1.pth', 1)
    assert latest_checkpoint(tmp_path) == path


@pytest.mark.parametrize(
    ('name', 'content'),
    [
        ('meta', {'meta': 3}),
        ('state_dict', {'state_dict': [torch.ones(1)]}),
        ('state_dict', {'state_dict': {1: torch.ones(1)}}),
        ('state_dict', {1: torch.ones(1)}),
        ('dataset_meta', {'meta': {'dataset_meta': ['x']}}),
    ],
)
def test_what_the_toolboxes_look_into_is_what_they_expect(name, content, tmp_path):
    torch.save(content, tmp_path / 'a.pth')
    with pytest.raises(UserError, match=f'a.pth is refused: its {name} is no dict with names as keys'):
        open_checkpoint(tmp_path / 'a.pth')
