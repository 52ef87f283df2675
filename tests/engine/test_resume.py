# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import assert_same_training, losses, run

from dat_mm.engine.checkpoints import read_meta

ROOT = Path(__file__).parents[2]
SCOPES = ('mmpretrain', 'mmdet', 'mmseg')


def start(config, work_dir, *options):
    command = [sys.executable, ROOT / 'tools/train.py', config, '--work-dir', work_dir, '--no-validate', *options]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    environment = {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process):
    output = process.communicate()[0]
    assert process.returncode == 0, output[-3000:]
    return output


@pytest.mark.slow
@pytest.mark.parametrize('scope', SCOPES)
def test_a_killed_run_goes_on_bit_for_bit(scope, tiny_config, tmp_path):
    """The run is killed as soon as it has a checkpoint, and resumed without a seed and with more workers."""
    config = tiny_config(scope)
    checkpoint = 'iter_3.pth' if scope == 'mmseg' else 'epoch_1.pth'
    last = 'iter_9.pth' if scope == 'mmseg' else f'epoch_{4 if scope == "mmpretrain" else 3}.pth'
    killed = start(config, tmp_path / 'killed')
    deadline = time.time() + 120
    while not (tmp_path / 'killed' / checkpoint).exists():
        assert killed.poll() is None and time.time() < deadline, killed.communicate()[0][-3000:]
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / 'killed' / last).exists()
    before = losses(tmp_path / 'killed')
    output = finish(start(config, tmp_path / 'killed', '--resume', '--cfg-options', 'train_dataloader.num_workers=2'))
    assert 'resumed epoch' in output
    seed = read_meta(tmp_path / 'killed' / checkpoint)['seed']
    finish(start(config, tmp_path / 'whole', '--seed', str(seed)))
    whole, resumed = losses(tmp_path / 'whole'), losses(tmp_path / 'killed')
    assert len(whole) >= 6
    assert resumed == whole
    assert all(whole[step] == loss for step, loss in before.items())
    assert_same_training(tmp_path / 'killed', tmp_path / 'whole')


@pytest.mark.slow
def test_the_last_iteration_of_an_epoch_is_resumed_once(tiny_config, tmp_path):
    """A checkpoint by iteration is written before the epoch counts as done, and the epoch is not done again."""
    config = tiny_config('mmpretrain')
    text = config.read_text()
    settings = (
        "default_hooks['checkpoint'].update(by_epoch=False, interval=3)\n"  # an epoch has three
        "train_dataloader['batch_size'] = 2\n"
        "custom_hooks = [dict(type='EMAHook', momentum=0.1)]\n"
    )
    config.write_text(f'{text}\n{settings}')
    whole = run(config, tmp_path / 'whole', '--seed', 3)
    assert whole.returncode == 0, whole.stderr[-2000:]
    assert read_meta(tmp_path / 'whole' / 'iter_3.pth')['epoch'] == 0
    (tmp_path / 'resumed').mkdir()
    shutil.copy(tmp_path / 'whole' / 'iter_3.pth', tmp_path / 'resumed')
    resumed = run(config, tmp_path / 'resumed', '--resume')
    assert resumed.returncode == 0, resumed.stderr[-2000:]

    of_whole = losses(tmp_path / 'whole')
    assert losses(tmp_path / 'resumed') == {step: loss for step, loss in of_whole.items() if step > 3}
    assert_same_training(tmp_path / 'resumed', tmp_path / 'whole')
