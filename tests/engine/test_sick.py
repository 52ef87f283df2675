# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Training that goes wrong: a loss that is not finite, and a process that hangs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmengine')

from run_logs import log_text, losses

from dat_mm.engine.checkpoints import latest_checkpoint

ROOT = Path(__file__).parents[2]
PLUGIN = '''
import os, signal, threading
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, TRANSFORMS

@HOOKS.register_module()
class Poison(Hook):
    """Puts a pixel that is not a number into the batches of the last process."""

    def __init__(self, at):
        self.at = at

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 in self.at and runner.rank == runner.world_size - 1:
            images = [image.float() for image in data_batch['inputs']]
            for image in images:
                image[..., 0] = float('nan')
            stacked = isinstance(data_batch['inputs'], torch.Tensor)
            data_batch['inputs'] = torch.stack(images) if stacked else images

def wait_for_ever():
    threading.Event().wait()

@HOOKS.register_module()
class Hang(Hook):
    def __init__(self, at, how='wait'):
        self.at, self.how = at, how

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 == self.at and runner.rank == runner.world_size - 1:
            if self.how == 'wait':
                wait_for_ever()
            else:
                os.kill(os.getpid(), signal.SIGSTOP)
'''


@pytest.fixture
def prepare(tiny_config):
    def write(scope, hook, extra=''):
        path = tiny_config(scope)
        (path.parent / 'plugins').mkdir()
        (path.parent / 'plugins/sick.py').write_text(PLUGIN)
        text = path.read_text().replace("imports=['dat_mm']", "imports=['dat_mm', 'sick']")
        path.write_text(f'{text}\ncustom_hooks = [{hook}]\n{extra}')
        return path

    return write


def run(config, work_dir, *options, processes=1):
    path = os.pathsep.join(map(str, [ROOT, config.parent / 'plugins', *filter(None, [os.environ.get('PYTHONPATH')])]))
    launcher = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', processes] if processes > 1 else []
    command = [sys.executable, *launcher, ROOT / 'tools/train.py', config, '--work-dir', work_dir, '--no-validate']
    command += ['--seed', 3, *options]
    command += ['--launcher', 'pytorch'] if processes > 1 else []
    environment = {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'}
    return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=300)


def finite(checkpoint):
    state = torch.load(checkpoint, weights_only=False)['state_dict']
    return all(bool(torch.isfinite(value).all()) for value in state.values() if value.is_floating_point())


@pytest.mark.slow
@pytest.mark.parametrize(('scope', 'name'), [('mmpretrain', '.png'), ('mmdet', '.png'), ('mmseg', '.png')])
def test_a_loss_that_is_not_finite_stops_the_run_and_is_named(scope, name, prepare, tmp_path):
    each = "default_hooks['checkpoint'].update(by_epoch=False, interval=1)\n"
    config = prepare(scope, "dict(type='Poison', at=[3])", each)
    done = run(config, tmp_path / 'work')
    assert done.returncode == 1, done.stderr[-2000:]
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith('error: iteration 3, process 0: ') and 'loss nan' in line and name in line
    last = latest_checkpoint(tmp_path / 'work')
    assert last.name == 'iter_2.pth' and f'the last checkpoint before it is {last}' in line
    assert finite(last)


@pytest.mark.slow
def test_all_processes_stop_when_one_has_such_a_loss(prepare, tmp_path):
    config = prepare('mmpretrain', "dict(type='Poison', at=[2])")
    done = run(config, tmp_path / 'work', processes=2)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if 'error: iteration 2, process 1: ' in line]
    assert len(lines) == 2, done.stderr[-3000:]  # both processes say what the second saw


@pytest.mark.slow
@pytest.mark.parametrize(('scope', 'processes'), [('mmpretrain', 1), ('mmpretrain', 2), ('mmdet', 1), ('mmseg', 1)])
def test_iterations_with_such_a_loss_are_skipped_up_to_a_limit(scope, processes, prepare, tmp_path):
    """The run ends with finite weights and running means; the count goes on after it was resumed."""
    extra = "skip_nonfinite_losses = 2\ndefault_hooks['checkpoint'].update(by_epoch=False, interval=2)\n"
    config = prepare(scope, "dict(type='Poison', at=[1, 3])", extra)
    done = run(config, tmp_path / 'work', processes=processes)
    assert done.returncode == 0, done.stderr[-2000:]
    text = log_text(tmp_path / 'work')
    assert 'skipped, 1 of at most 2' in text and 'skipped, 2 of at most 2' in text
    assert f'iteration 3, process {processes - 1}: ' in text
    assert finite(latest_checkpoint(tmp_path / 'work'))

    if (scope, processes) == ('mmpretrain', 1):
        (tmp_path / 'work/last_checkpoint').write_text(str(tmp_path / 'work/iter_2.pth'))
        done = run(config, tmp_path / 'work', '--resume', '--cfg-options', 'custom_hooks.0.at=[3,4]')
        assert done.returncode == 1
        assert ': 3 iterations, and skip_nonfinite_losses is 2' in done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_the_other_batches_of_a_step_count(prepare, tmp_path):
    """A step of two batches, of which one is left out, is a step all the same."""
    extra = "skip_nonfinite_losses = 1\noptim_wrapper['accumulative_counts'] = 2\n"
    config = prepare('mmpretrain', "dict(type='Poison', at=[1])", extra)
    done = run(config, tmp_path / 'work')
    assert done.returncode == 0, done.stderr[-2000:]
    norms = [norm for _, norm in losses(tmp_path / 'work').values() if norm]
    assert norms and all(norm == norm for norm in norms)
    step = torch.load(latest_checkpoint(tmp_path / 'work'), weights_only=False)['optimizer']['state'][0]['step']
    assert int(step) == 4  # of an epoch of two iterations, four times


@pytest.mark.slow
@pytest.mark.parametrize('how', ['wait', 'stop'])
def test_a_process_that_hangs_ends_the_run_with_the_stacks_of_all(how, prepare, tmp_path):
    config = prepare('mmpretrain', f"dict(type='Hang', at=2, how='{how}')", 'hang_timeout = 12\n')
    done = run(config, tmp_path / 'work', processes=2)
    assert done.returncode != 0
    assert 'nothing was finished in 12 s (hang_timeout): ended' in done.stderr
    stacks = {path.name: path.read_text() for path in (tmp_path / 'work/stacks').iterdir()}
    assert 'train_step' in stacks['rank_0.txt'] and 'train_step' in done.stderr
    if how == 'wait':
        assert 'wait_for_ever' in stacks['rank_1.txt']


def test_a_run_that_ends_leaves_no_stacks_and_no_alarm(tmp_path):
    import signal

    from dat_mm.engine.watchdog import Watchdog

    watchdog = Watchdog(1000)
    with watchdog.watching(tmp_path):
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 1000
        watchdog.beat()
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    assert not (tmp_path / 'stacks').exists()
