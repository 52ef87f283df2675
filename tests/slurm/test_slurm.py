# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Training, testing and preemption on a real Slurm of two nodes without GPUs."""

import json
import os
import sys
import time

import pytest
import torch

pytest.importorskip('mmengine')

from noted import long_version
from runs import ROOT, add_plugin, assert_same_training, python_path, run_alone

from dat_mm.engine.checkpoints import latest_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.one_stack]
TOOLS = ROOT / 'tools'
# Hooks of the tests: one that fails, one that hangs, and one that has the run preempted by a job that comes first.
HOOKS = """
import os, subprocess, threading, time
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class FailAt(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank == runner.world_size - 1 and runner.iter == 2:
            raise RuntimeError('this rank fails on purpose')

@HOOKS.register_module()
class HangAt(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank == runner.world_size - 1 and runner.iter == 2:
            self.wait_for_ever()

    def wait_for_ever(self):
        threading.Event().wait()

@HOOKS.register_module()
class BePreempted(Hook):
    def __init__(self, at):
        self.at = at

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        restart = int(os.environ.get('SLURM_RESTART_COUNT', 0))
        if restart < len(self.at) and runner.iter == self.at[restart] - 1:
            if runner.rank == 0:
                rival = ['sbatch', '--partition=main', '--nodes=2', '--exclusive', '--output=/dev/null']
                subprocess.run([*rival, '--wrap', 'true'], check=True)
            wait_for_signal(runner)

def wait_for_signal(runner):
    stop = next(hook for hook in runner.hooks if type(hook).__name__ == 'StopOnSignal')
    end = time.monotonic() + 120
    while stop.asked is None:
        assert time.monotonic() < end, 'Slurm sent no signal'
        time.sleep(0.1)
"""


SCOPES = ('mmpretrain', 'mmdet', 'mmseg')
SETTINGS = "train_dataloader['batch_size'] = 1\nrandomness = dict(seed=5)\ncustom_hooks = []\n"


@pytest.fixture
def config(tiny_config):
    path = tiny_config('mmpretrain')
    add_plugin(path, HOOKS, SETTINGS)
    return path


def variables(config, **more):
    alike = dict(OMP_NUM_THREADS='1', GPUS='0', CPUS_PER_TASK='1')
    return dict(PYTHON=sys.executable, PYTHONPATH=python_path(config), **alike, **more)


ENDED = ('COMPLETED', 'FAILED', 'CANCELLED', 'TIMEOUT', 'NODE_FAIL')


def starts(log):
    return [line.split(', ')[1] for line in log.splitlines() if line.startswith('== ') and 'start' in line]


def weights(folder):
    return torch.load(latest_checkpoint(folder), weights_only=False)['state_dict']


def test_two_nodes_train_as_one_machine_does(cluster, config, tmp_path):
    work, alone = tmp_path / 'slurm', tmp_path / 'alone'
    four = variables(config, TASKS='4', TASKS_PER_NODE='2')
    cluster.run('bash', TOOLS / 'slurm_train.sh', 'main', 'train', config, work, '--no-validate', **four)
    (log,) = work.glob('*/*.log')
    assert 'GPU number: 4' in log.read_text()
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=4']
    command = [*torchrun, TOOLS / 'train.py', config, '--work-dir', alone, '--no-validate', '--launcher', 'pytorch']
    done = run_alone(command, env={**os.environ, **four})
    assert done.returncode == 0, done.stderr[-3000:]
    found, expected = weights(work), weights(alone)
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-4, atol=1e-6, msg=key)

    out = tmp_path / 'metrics.json'
    checkpoint = latest_checkpoint(work)
    two = variables(config, TASKS='2', TASKS_PER_NODE='1')
    cluster.run('bash', TOOLS / 'slurm_test.sh', 'main', 'test', config, checkpoint, '--out', out, **two)
    single = tmp_path / 'single.json'
    command = [sys.executable, TOOLS / 'test.py', config, checkpoint, '--out', single]
    done = run_alone(command, env={**os.environ, **two})
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(out.read_text()) == pytest.approx(json.loads(single.read_text()))


def test_a_rank_that_fails_ends_the_job(cluster, config, tmp_path):
    config.write_text(config.read_text() + "custom_hooks.append(dict(type='FailAt'))\n")
    start = time.monotonic()
    done = cluster.run(
        'bash', TOOLS / 'slurm_train.sh', 'main', 'fail', config, tmp_path / 'work', '--no-validate',
        check=False, **variables(config, TASKS='4', TASKS_PER_NODE='2'),
    )  # fmt: skip
    assert done.returncode != 0
    assert 'RuntimeError: this rank fails on purpose' in done.stdout + done.stderr
    assert time.monotonic() - start < 300  # and not after the half hour that torch waits for a rank


def test_a_rank_that_hangs_ends_the_job(cluster, config, tmp_path):
    config.write_text(config.read_text() + "custom_hooks.append(dict(type='HangAt'))\n")
    work = tmp_path / 'work'
    done = cluster.run(
        'bash', TOOLS / 'slurm_train.sh', 'main', 'hang', config, work, '--no-validate', '--cfg-options',
        'hang_timeout=10', check=False, **variables(config, TASKS='4', TASKS_PER_NODE='2'),
    )  # fmt: skip
    assert done.returncode != 0
    assert f'no iteration in 10 s: ended; the stacks are in {work}/stacks' in done.stdout + done.stderr
    stacks = [(work / f'stacks/rank_{rank}.txt').read_text() for rank in range(4)]
    assert ['in wait_for_ever' in text for text in stacks] == [False, False, False, True]


@pytest.mark.parametrize('scope', SCOPES if long_version() else SCOPES[:1])
def test_a_job_that_is_preempted_three_times_ends_as_one_that_never_was(scope, cluster, tiny_config, tmp_path, seen):
    """A job of a higher partition takes the nodes inside an epoch and at the end of one; Slurm queues the run again."""
    whole, work = tmp_path / 'whole', tmp_path / 'work'
    config = tiny_config(scope)
    add_plugin(config, HOOKS, f"{SETTINGS}custom_hooks.append(dict(type='EMAHook', momentum=0.01))\n")
    two = variables(config, TASKS='2', TASKS_PER_NODE='1')
    cluster.run('bash', TOOLS / 'slurm_train.sh', 'main', 'whole', config, whole, **two)

    config.write_text(config.read_text() + "custom_hooks.append(dict(type='BePreempted', at=[2, 3, 7]))\n")
    submitted = cluster.run(
        'bash', TOOLS / 'slurm_submit.sh', 'low', 'run', config, work, SBATCH_ARGS='--parsable --exclusive', **two
    )
    job = submitted.stdout.split()[-1]
    cluster.wait(lambda: cluster.state(job) in ENDED, 900, f'job {job}')
    log = (work / f'slurm-{job}.log').read_text()
    parts = '\n'.join(path.read_text()[-1500:] for path in sorted(work.glob('slurm-*-*.log')))
    assert cluster.state(job) == 'COMPLETED', f'{log}\n{parts}'
    assert starts(log) == [f'start {n}' for n in (1, 2, 3, 4)]
    assert log.count('the run ended with 75') == 3, log
    assert_same_training(work, whole)
    assert [path.name for path in sorted(work.glob('epoch_*.pth'))] == [
        path.name for path in sorted(whole.glob('epoch_*.pth'))
    ]
    seen(f'{scope}: preempted by Slurm three times on two nodes', 'queued again, went on, ended with the same bits')


def test_the_rows_of_a_table_are_array_jobs(cluster, tiny_config, tmp_path, seen):
    """Two rows and a third that starts from one of them are trained and tested by Slurm, and stand in the table.

    The job of the first two is preempted. The third waits for it, and the first ends as in a run of its own.
    """
    config, folder = tiny_config('mmpretrain'), tmp_path / 'configs/tiny'
    folder.mkdir(parents=True)
    add_plugin(config, HOOKS, SETTINGS)
    preempted = "custom_hooks.append(dict(type='BePreempted', at=[3]))\n"
    for name, hook in (('first', preempted), ('other', preempted), ('second', '')):
        (folder / f'{name}.py').write_text(config.read_text() + hook)
    rows = [f'  - Name: {name}\n    Config: configs/tiny/{name}.py\n' for name in ('first', 'other', 'second')]
    pretrained = '    Metadata:\n      Pretrained From: configs/tiny/first.py\n'
    (folder / 'metafile.yml').write_text(f'Models:\n{"".join(rows)}{pretrained}')
    two, options = variables(config, TASKS='2', TASKS_PER_NODE='1'), ['train_cfg.max_epochs=2']
    command = [TOOLS / 'reproduce.py', folder, '--train', '--out', tmp_path / 'out', '--train-options', *options]
    submitted = cluster.run(sys.executable, *command, '--submit', 'low', **two)
    jobs = [line.split('job ')[1].split(':')[0] for line in submitted.stdout.splitlines() if 'job ' in line]
    assert len(jobs) == 2
    results = [tmp_path / f'out/{name}/seed-0/result.json' for name in ('first', 'other', 'second')]
    logs = tmp_path / 'out/slurm'
    cluster.wait(lambda: all(path.is_file() for path in results), 600, f'jobs {jobs}; the logs are in {logs}')
    assert json.loads(results[2].read_text())['metrics']
    assert 'GPU number: 2' in next((tmp_path / 'out/second/seed-0/train').glob('*/*.log')).read_text()
    assert all(starts((logs / f'pretraining-{n}.log').read_text()) == ['start 1', 'start 2'] for n in (0, 1))
    assert starts((logs / 'rows-0.log').read_text()) == ['start 1']
    done = run_alone([sys.executable, *command], env={**os.environ, **two})
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count('done before') == 3 and '| second |' in done.stdout

    whole, options = tmp_path / 'whole', ['--seed', 0, '--no-validate', '--cfg-options', *options]
    cluster.run('bash', TOOLS / 'slurm_train.sh', 'main', 'whole', config, whole, *options, **two)
    assert_same_training(tmp_path / 'out/first/seed-0/train', whole)
    seen('two tasks of an array job of reproduce.py, preempted', 'queued again, went on; the rows after them waited')
