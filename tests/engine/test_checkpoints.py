# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Checkpoints are written whole, and one that is not whole is recognised."""

import os
from collections import deque

import pytest
import torch

pytest.importorskip('mmengine')

from dat_mm.engine.checkpoint_hook import CheckpointHook
from dat_mm.engine.checkpoints import INTERRUPTED, is_whole, latest_checkpoint, note_last
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
