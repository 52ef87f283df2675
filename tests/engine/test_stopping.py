# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""A training that is asked to stop again and again ends as one that never was, to the bit."""

import signal
import subprocess
import threading

import pytest

pytest.importorskip('mmengine')

from runs import add_plugin, assert_same_training, losses, run

from dat_mm.engine import stopping
from dat_mm.engine.agreement import Agreement
from dat_mm.engine.checkpoints import INTERRUPTED, latest_checkpoint

SCOPES = ('mmpretrain', 'mmdet', 'mmseg')
# A hook that sends the process a signal at the places that are named, in training or in validation.
SENDER = '''
import os, resource, signal
from contextlib import suppress
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class SendSignal(Hook):
    priority = 'NORMAL'

    def __init__(self, at, where='train', name='SIGUSR1'):
        self.at, self.where, self.name = at, where, name

    def send(self, runner):
        if self.at in ('any', runner.iter + (self.where == 'train')) and runner.rank == runner.world_size - 1:
            os.kill(os.getpid(), getattr(signal, self.name))

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self.where == 'train':
            self.send(runner)

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if self.where == 'val' and batch_idx == 1:
            self.send(runner)

@HOOKS.register_module()
class FillDisk(Hook):
    """Leaves no byte on the disk after so many epochs, or, where no file is named, lets none grow beyond a megabyte."""

    def __init__(self, file=None, after=1):
        self.file, self.after = file, after

    def before_train_epoch(self, runner):
        if runner.epoch != self.after:
            return
        if self.file is None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
            return
        with suppress(OSError), open(self.file, 'wb', buffering=0) as file:
            while True:
                file.write(bytes(4096))
'''


def write_sender(config, extra='', source=SENDER):
    ema = "custom_hooks = [dict(type='EMAHook', momentum=0.01), dict(type='SendSignal', at=-1)]\n"
    add_plugin(config, source, f'{ema}{extra}')


@pytest.mark.slow
@pytest.mark.parametrize('scope', SCOPES)
def test_interrupted_runs_end_as_whole_ones(scope, tiny_config, tmp_path):
    """Stopped inside an epoch, at its end and in a validation, by either signal, with averages of the weights.

    A step of the optimizer takes two iterations, so that an epoch of three ends inside one.
    """
    config = tiny_config(scope)
    extra = (
        "optim_wrapper['accumulative_counts'] = 2\n"
        "default_hooks['checkpoint'].update(max_keep_ckpts=1, save_best='auto')\n"
    )
    write_sender(config, extra)
    options = ('--seed', 3, '--cfg-options', 'train_dataloader.num_workers=2')
    whole = run(config, tmp_path / 'whole', *options)
    assert whole.returncode == 0, whole.stderr[-2000:]

    stops = [(2, 'train', 'SIGUSR1'), ('any', 'val', 'SIGUSR1'), (6, 'train', 'SIGTERM')]
    if scope == 'mmpretrain':
        stops.insert(1, (3, 'train', 'SIGTERM'))
    for at, where, name in stops:
        key = 'custom_hooks.1'
        settings = (f'{key}.at={at}', f'{key}.where={where}', f'{key}.name={name}')
        stopped = run(config, tmp_path / 'stopped', '--resume', *options, *settings)
        assert stopped.returncode == stopping.REQUEUE, stopped.stderr[-2000:]
    finished = run(config, tmp_path / 'stopped', '--resume', *options)
    assert finished.returncode == 0, finished.stderr[-2000:]

    assert losses(tmp_path / 'stopped') == losses(tmp_path / 'whole')
    assert_same_training(tmp_path / 'stopped', tmp_path / 'whole')
    for pattern in ('best_*.pth', 'epoch_*.pth', 'iter_*.pth'):
        names = [sorted(path.name for path in (tmp_path / run_).glob(pattern)) for run_ in ('whole', 'stopped')]
        assert names[0] == names[1], pattern
    assert not (tmp_path / 'stopped' / INTERRUPTED).exists()


@pytest.mark.slow
def test_all_processes_stop_together(tiny_config, tmp_path):
    """The signal reaches the last of two processes alone."""
    config = tiny_config('mmpretrain')
    write_sender(config)
    options = ('--seed', 3, '--no-validate')
    whole = run(config, tmp_path / 'whole', *options, processes=2)
    assert whole.returncode == 0, whole.stderr[-2000:]
    stopped = run(config, tmp_path / 'stopped', *options, '--cfg-options', 'custom_hooks.1.at=3', processes=2)
    assert stopped.returncode != 0
    assert 'stopped after iteration 3' in stopped.stdout + stopped.stderr
    assert latest_checkpoint(tmp_path / 'stopped').name == INTERRUPTED
    finished = run(config, tmp_path / 'stopped', *options, '--resume', processes=2)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert_same_training(tmp_path / 'stopped', tmp_path / 'whole')


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint(tiny_config, tmp_path):
    config = tiny_config('mmpretrain')
    extra = "custom_hooks.append(dict(type='FillDisk'))\ndefault_hooks['checkpoint'].update(max_keep_ckpts=1)\n"
    write_sender(config, extra)
    done = run(config, tmp_path / 'work', '--no-validate')
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f'error: {tmp_path}/work/epoch_2.pth could not be written: ')
    assert last.endswith(f'; the last good checkpoint is {tmp_path}/work/epoch_1.pth')
    assert latest_checkpoint(tmp_path / 'work') == tmp_path / 'work/epoch_1.pth'
    assert not list((tmp_path / 'work').glob('.*.pth'))


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 30 MB in memory, on which one checkpoint has room."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    done = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=30m', 'tmpfs', folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f'a disk in memory cannot be mounted here: {done.stderr.strip()}')
    yield folder
    subprocess.run(['umount', '--lazy', folder], check=True)


@pytest.mark.slow
def test_a_disk_that_is_full_of_checkpoints_ends_the_run(small_disk, tiny_config):
    done = run(tiny_config('mmpretrain'), small_disk / 'work', '--no-validate')
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f'error: {small_disk}/work/epoch_2.pth could not be written: ')
    assert last.endswith(f'No space left on device; the last good checkpoint is {small_disk}/work/epoch_1.pth')
    assert latest_checkpoint(small_disk / 'work') == small_disk / 'work/epoch_1.pth'


@pytest.mark.slow
def test_a_disk_without_room_for_a_line_of_the_log_ends_the_run(small_disk, tiny_config):
    """Long before the next checkpoint, as where somebody else fills it."""
    config = tiny_config('mmpretrain')
    fill = f"custom_hooks.append(dict(type='FillDisk', file='{small_disk}/ballast', after=5))\n"
    length = "train_dataloader['batch_size'] = 1\ntrain_cfg['max_epochs'] = 10\n"
    write_sender(config, f"{fill}{length}default_hooks['checkpoint']['interval'] = 5\n")
    done = run(config, small_disk / 'work', '--no-validate')
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith('error: a file could not be written: ') and 'No space left on device' in last
    assert last.endswith(f'; the last good checkpoint is {small_disk}/work/epoch_5.pth')
    assert latest_checkpoint(small_disk / 'work') == small_disk / 'work/epoch_5.pth'


def test_a_process_whose_peers_are_gone_ends_after_the_grace(monkeypatch):
    ended, done = [], threading.Event()
    monkeypatch.setattr(stopping.os, '_exit', lambda code: (ended.append(code), done.set()))
    hook = stopping.StopOnSignal(Agreement(), grace=0.01)
    hook._on_signal(signal.SIGTERM, None)
    assert done.wait(30)
    assert ended == [143]
