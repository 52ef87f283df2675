# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""A training of two processes, one of which is killed again and again, ends as one that never was, to the bit."""

from collections import Counter
from random import Random

import pytest

pytest.importorskip('mmengine')

from noted import long_version
from runs import add_plugin, assert_same_training, losses, run

from dat_mm.engine.checkpoints import is_whole, latest_checkpoint

pytestmark = pytest.mark.one_stack

PLACES = (
    *('before an iteration', 'before a step', 'half a checkpoint written', 'checkpoint not renamed'),
    *('checkpoint not noted', 'old checkpoint not removed', 'inside a validation'),
)
# Kills a process with SIGKILL at one of these places, after so many iterations of this start.
PLUGIN = """
import os, signal
from pathlib import Path
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

@HOOKS.register_module()
class Kill(Hook):
    priority = 'VERY_LOW'

    def __init__(self, place='', rank=0, after=1):
        self.place, self.rank, self.after = place.replace('-', ' '), rank, after

    def due(self, runner, *places):
        return self.place in places and runner.rank == self.rank and runner.iter - self.begin >= self.after

    def before_train(self, runner):
        self.begin = runner.iter
        if self.place == 'before a step':
            step = runner.optim_wrapper.step
            runner.optim_wrapper.step = lambda **options: (self.due(runner, self.place) and die(), step(**options))

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if self.due(runner, 'before an iteration'):
            die()

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if self.due(runner, 'inside a validation'):
            die()

    def before_save_checkpoint(self, runner, checkpoint):
        self.rank = 0  # which writes
        if self.due(runner, 'half a checkpoint written'):
            def put(backend, content, path):
                Path(path).write_bytes(content[: len(content) // 2])
                die()
            LocalBackend.put = put
        elif self.due(runner, 'checkpoint not renamed'):
            os.replace = die
        elif self.due(runner, 'checkpoint not noted'):
            replace = os.replace
            os.replace = lambda *names: (replace(*names), die())
        elif self.due(runner, 'old checkpoint not removed'):
            LocalBackend.remove = die
"""


def prepared(tiny_config):
    config = tiny_config('mmpretrain')
    settings = (
        "custom_hooks = [dict(type='EMAHook', momentum=0.01), dict(type='Kill')]\n"
        "train_dataloader['batch_size'] = 1\n"
        "default_hooks['checkpoint'].update(by_epoch=False, interval=1, max_keep_ckpts=2)\n"
        "train_cfg['max_epochs'] = 12\n"  # of three iterations
    )
    add_plugin(config, PLUGIN, settings)
    return config


@pytest.mark.slow
@pytest.mark.timeout(5400 if long_version() else 900)
def test_a_run_that_is_killed_again_and_again_ends_as_a_whole_one(tiny_config, tmp_path, seen):
    kills = 20 if long_version() else 4
    config, rng = prepared(tiny_config), Random(1)
    options = ('--seed', 3, '--resume')
    whole = run(config, tmp_path / 'whole', *options, processes=2, real=long_version())
    assert whole.returncode == 0, whole.stderr[-2000:]

    happened = Counter()
    places = [PLACES[n % len(PLACES)] for n in range(kills)] if long_version() else rng.sample(PLACES[1:5], kills)
    for place in places:
        key = 'custom_hooks.1'
        settings = [
            f'{key}.rank={rng.randrange(2)}',
            f'{key}.after={rng.randrange(1, 3)}',
            f'{key}.place={place.replace(" ", "-")}',
        ]
        killed = run(
            config, tmp_path / 'killed', *options, '--cfg-options', *settings, processes=2, real=long_version()
        )
        if killed.returncode == 0:  # the place did not come any more
            break
        happened[place] += 1
        last = latest_checkpoint(tmp_path / 'killed')
        assert last is None or is_whole(last)
    finished = run(config, tmp_path / 'killed', *options, processes=2, real=long_version())
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert sum(happened.values()) == kills

    assert_same_training(tmp_path / 'whole', tmp_path / 'killed')
    assert losses(tmp_path / 'whole') == losses(tmp_path / 'killed')
    told = ', '.join(f'{place} ({count})' for place, count in happened.items())
    seen(f'kill -9 of a process of two, {kills} times: {told}', 'went on each time, ended with the same bits')
