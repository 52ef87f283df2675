# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""A run in which a process hangs ends, and all processes leave their stacks."""

import logging
import threading
from contextlib import suppress

import pytest

pytest.importorskip('mmengine')

from runs import add_plugin, log_text, run

from dat_mm.engine import hanging
from dat_mm.engine.checkpoints import latest_checkpoint
from dat_mm.engine.hanging import EndWhenHung
from dat_mm.errors import UserError

pytestmark = pytest.mark.one_stack

# A transform that hangs in one of the processes, after the first batch.
HANG = """
import ctypes, os, signal, threading
from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS

@TRANSFORMS.register_module()
class Hang(BaseTransform):
    def __init__(self, how, rank=1):
        self.how, self.rank, self.count = how, rank, 0

    def transform(self, results):
        self.count += 1
        if self.count > 4 and int(os.environ.get('RANK', 0)) == self.rank:
            getattr(self, self.how)()
        return results

    def wait_for_ever(self):
        threading.Event().wait()

    def keep_the_lock_of_python(self):
        ctypes.PyDLL(None).pause()

    def be_stopped(self):
        os.kill(os.getpid(), signal.SIGSTOP)
"""


class Log:
    """What a logger is told."""

    def __init__(self):
        self.lines = []

    def error(self, line):
        self.lines.append(line)


def write_hang(config, how, loader='train_dataloader', rank=1):
    step = f"dict(type='Hang', how='{how}', rank={rank})"
    add_plugin(config, HANG, f"{loader}['dataset']['pipeline'].insert(1, {step})\nhang_timeout = 10\n")
    return config


def stacks(work_dir, rank):
    return (work_dir / f'stacks/rank_{rank}.txt').read_text()


def here_until(ended):
    assert ended.wait(30)


def test_a_process_without_iterations_ends_with_its_stacks(monkeypatch, tmp_path, capfd):
    ended, codes, log = threading.Event(), [], Log()
    monkeypatch.setattr(hanging.os, '_exit', lambda code: (codes.append(code), ended.set()))
    monkeypatch.setattr(hanging, 'GRACE', 0.01)
    with EndWhenHung(0.05, tmp_path, 3, log):
        here_until(ended)
    assert codes == [1]
    line = f'no iteration in 0.05 s: ended; the stacks are in {tmp_path}/stacks'
    assert log.lines == [line]
    for text in (stacks(tmp_path, 3), capfd.readouterr().err):
        assert text.startswith(f'rank_3: {line}\n')
        assert 'in here_until' in text


@pytest.mark.parametrize('error', [None, UserError('the data')], ids=['to its end', 'with an error'])
def test_nothing_is_left_of_a_run_that_is_over(error, tmp_path):
    threads = threading.active_count()
    with suppress(UserError), EndWhenHung(60, tmp_path, 0, logging.getLogger()):
        assert threading.active_count() == threads + 1
        assert (tmp_path / 'stacks/rank_0.txt').exists()
        if error:
            raise error
    assert threading.active_count() == threads
    assert not (tmp_path / 'stacks').exists()


@pytest.mark.parametrize(
    'place', ['after_train_iter', 'after_val_iter', 'after_test_iter', 'after_val_epoch', 'before_save_checkpoint']
)
def test_these_count_as_signs_of_life(place, tmp_path):
    hook = EndWhenHung(60, tmp_path, 0, logging.getLogger())
    getattr(hook, place)(None, 0)
    assert hook._last > 0


@pytest.mark.parametrize('timeout', [-1, 'long', True, float('nan')], ids=str)
def test_the_number_is_checked(timeout, tmp_path):
    with pytest.raises(UserError, match=f'^hang_timeout={timeout!r}: a number of seconds'):
        EndWhenHung(timeout, tmp_path, 0, logging.getLogger())


@pytest.mark.slow
@pytest.mark.parametrize(
    ('how', 'workers', 'more'),
    [
        ('wait_for_ever', 0, ()),
        ('wait_for_ever', 1, ()),
        ('keep_the_lock_of_python', 0, ()),
        ('wait_for_ever', 0, ['strategy.type=ShardedStrategy']),
    ],
    ids=str,
)
def test_a_transform_that_hangs(how, workers, more, tiny_config, tmp_path):
    """In the second of two processes, or in the worker of it; with Python's lock, which stops all of its threads."""
    config, work = write_hang(tiny_config('mmpretrain'), how), tmp_path / 'work'
    options = ('--no-validate', '--cfg-options', f'train_dataloader.num_workers={workers}', *more)
    done = run(config, work, *options, processes=2)
    assert done.returncode != 0
    line = f'no iteration in 10 s: ended; the stacks are in {work}/stacks'
    assert line in log_text(work)
    assert f'rank_0: {line}' in done.stderr
    assert f'in {how}' in stacks(work, 1)
    assert 'in after_train_iter' in stacks(work, 0) or 'in train_step' in stacks(work, 0)
    assert f'in {how}' not in stacks(work, 0)


@pytest.mark.slow
def test_a_process_that_is_stopped(tiny_config, tmp_path):
    config, work = write_hang(tiny_config('mmpretrain'), 'be_stopped'), tmp_path / 'work'
    done = run(config, work, '--no-validate', processes=2)
    assert done.returncode != 0
    assert 'no iteration in 10 s: ended' in log_text(work)
    assert 'in train_step' in stacks(work, 0)


@pytest.mark.slow
def test_a_test_that_hangs(tiny_config, tmp_path):
    config = write_hang(tiny_config('mmpretrain'), 'wait_for_ever', 'test_dataloader', rank=0)
    work = tmp_path / 'work'
    trained = run(config, work, '--no-validate')
    assert trained.returncode == 0, trained.stderr[-2000:]
    assert not (work / 'stacks').exists()
    done = run(config, work, latest_checkpoint(work), tool='test.py')
    assert done.returncode == 1
    assert f'no iteration in 10 s: ended; the stacks are in {work}/stacks' in log_text(work)
    assert 'in wait_for_ever' in stacks(work, 0)
