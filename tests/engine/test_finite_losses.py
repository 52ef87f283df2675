# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""A loss that is not finite ends a run or is skipped, in all processes, and touches no weights that are saved."""

import os
import re
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmengine')

from engine.test_stopping import SCOPES
from engine.toy_run import train
from runs import add_plugin, forked, log_text, python_path, run, run_alone

from dat_mm.engine.checkpoints import last_good_checkpoint, latest_checkpoint
from dat_mm.errors import UserError

TOY = Path(__file__).with_name('toy_run.py')
# A hook that makes the images of an iteration NaN in the last process.
POISON = """
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class Poison(Hook):
    def __init__(self, at):
        self.at = at

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 in self.at and runner.rank == runner.world_size - 1:
            data_batch['inputs'] = [image * float('nan') for image in data_batch['inputs']]
"""


def checkpoint(folder, iteration):
    return torch.load(Path(folder, f'iter_{iteration}.pth'), weights_only=False)


def states(folder, iteration):
    """The tensors of a checkpoint: averages, momenta, and as `module.*` the weights, which EMAHook puts there."""
    content = checkpoint(folder, iteration)
    momenta = {str(key): state['momentum_buffer'] for key, state in content['optimizer']['state'].items()}
    return {**content['state_dict'], **content['ema_state_dict'], **momenta}


def assert_same(one, two, keys=''):
    assert one.keys() == two.keys()
    for key in one:
        if keys in key:
            torch.testing.assert_close(one[key], two[key], msg=key)


@pytest.mark.parametrize('poison', [float('nan'), float('inf')], ids=str)
def test_a_run_ends_at_the_first_such_loss(poison, tmp_path):
    with pytest.raises(UserError) as told:
        train(tmp_path, poison=poison, poisoned=[3])
    line = str(told.value)
    assert re.fullmatch(
        r'non-finite loss: iteration 3, rank 0: loss=\S+, loss_toy=\S+ '
        r'for images 4\.png \(img_id 4\), 5\.png \(img_id 5\); '
        rf'the run ends, the last good checkpoint is {tmp_path}/iter_2\.pth',
        line,
    )
    assert line in log_text(tmp_path)
    assert latest_checkpoint(tmp_path) == tmp_path / 'iter_2.pth'
    assert not (tmp_path / 'iter_3.pth').exists()


def test_a_skipped_iteration_changes_nothing(tmp_path):
    """Neither weights and momenta nor averages and running statistics."""
    train(tmp_path, skip=1, poisoned=[3])
    before, skipped, after = (states(tmp_path, iteration) for iteration in (2, 3, 4))
    assert_same(before, skipped)
    for key in ('linear.weight', 'norm.running_mean', 'module.norm.running_mean', 'module.linear.weight'):
        assert not torch.equal(skipped[key], after[key]), key
    assert 'non-finite loss 1 of at most 1: iteration 3, rank 0: loss=nan' in log_text(tmp_path)
    assert checkpoint(tmp_path, 3)['meta']['nonfinite_losses'] == 1


@pytest.mark.parametrize('poisoned', [[3], [4], [3, 4], [6]], ids=str)
def test_the_other_gradients_of_a_step_count(poisoned, tmp_path):
    """With accumulated gradients, a skipped iteration is one whose gradient is zero."""
    train(tmp_path / 'skipped', skip=2, counts=2, poisoned=poisoned)
    train(tmp_path / 'zeros', counts=2, poison=0.0, poisoned=poisoned)
    for iteration in range(1, 7):
        if poisoned != [3, 4] or iteration < 4:  # without any gradient there is no step, not even of momentum
            skipped, zeros = (states(tmp_path / name, iteration) for name in ('skipped', 'zeros'))
            assert_same(skipped, zeros, 'module.linear')
    if poisoned == [3, 4]:
        assert_same(states(tmp_path / 'skipped', 2), states(tmp_path / 'skipped', 4))


def test_no_more_are_skipped_than_the_config_says(tmp_path):
    """The count goes on in a resumed run."""
    train(tmp_path, skip=1, poisoned=[2], iterations=3)
    with pytest.raises(UserError, match=r'non-finite loss 2, more than skip_nonfinite_losses=1: iteration 5') as told:
        train(tmp_path, skip=1, poisoned=[5], resume=True)
    assert str(told.value).endswith(f'{tmp_path}/iter_4.pth')


@pytest.mark.parametrize('skip', [-1, 'all', 0.5])
def test_the_number_is_checked(skip, tmp_path):
    with pytest.raises(UserError, match=rf'^skip_nonfinite_losses={re.escape(repr(skip))}: a number of iterations'):
        train(tmp_path, skip=skip)


def test_a_checkpoint_with_nan_is_no_good_one(tmp_path):
    for iteration, value in enumerate((1.0, float('nan')), 1):
        torch.save({'state_dict': {'weight': torch.full((2,), value)}}, tmp_path / f'iter_{iteration}.pth')
        os.utime(tmp_path / f'iter_{iteration}.pth', (iteration, iteration))
    assert latest_checkpoint(tmp_path) == tmp_path / 'iter_2.pth'
    assert last_good_checkpoint(tmp_path) == tmp_path / 'iter_1.pth'


def run_toy(folder, *arguments, launched=False):
    """Runs it in two processes, which torchrun launches if asked to."""
    environment = {**os.environ, 'PYTHONPATH': python_path(None), 'OMP_NUM_THREADS': '1'}
    if not launched:
        return forked(str(TOY), list(map(str, [folder, *arguments])), environment, processes=2)
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2', TOY, folder]
    return run_alone([*command, *arguments], env=environment)


@pytest.mark.slow
def test_all_processes_end_together(tmp_path):
    """The loss of the second process alone is NaN; the log is that of the first."""
    done = run_toy(tmp_path, 0, 1, 'nan', 3, launched=True)
    assert done.returncode == 1
    line = 'non-finite loss: iteration 3, rank 1: loss=nan, loss_toy=nan for images 10.png (img_id 10), 11.png'
    assert line in log_text(tmp_path)
    assert done.stderr.count(f'error: {line}') == 2
    assert 'Traceback' not in done.stderr.split('ChildFailedError')[0].split('error: ')[1].split('\n')[0]
    assert latest_checkpoint(tmp_path) == tmp_path / 'iter_2.pth'


@pytest.mark.slow
@pytest.mark.parametrize(('counts', 'poisoned'), [(1, [3]), (2, [4]), (3, [3, 5])], ids=str)
def test_all_processes_skip_together(counts, poisoned, tmp_path):
    """The last iteration of a step is the one in which DDP averages the gradients."""
    for folder, poison in ((tmp_path / 'skipped', 'nan'), (tmp_path / 'zeros', 0)):
        done = run_toy(folder, 3, counts, poison, *poisoned)
        assert done.returncode == 0, done.stderr[-3000:]
    if counts == 1:
        assert_same(states(tmp_path / 'skipped', 2), states(tmp_path / 'skipped', 3))
    else:
        assert_same(states(tmp_path / 'skipped', 6), states(tmp_path / 'zeros', 6), 'module.linear')


@pytest.mark.slow
@pytest.mark.parametrize('scope', SCOPES)
def test_toolboxes_name_the_images(scope, tiny_config, tmp_path):
    config = tiny_config(scope)
    add_plugin(config, POISON, "custom_hooks = [dict(type='Poison', at=[3, 4])]\n")
    options = ('--no-validate', '--cfg-options')
    ended = run(config, tmp_path / 'ended', *options, 'skip_nonfinite_losses=1')
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert last.startswith('error: non-finite loss 2, more than skip_nonfinite_losses=1: iteration 4, rank 0: loss=nan')
    assert re.search(r'images \S+/\d\.png', last)
    assert re.search(r'; the run ends, the last good checkpoint is \S+\.pth$', last)
    skipped = run(config, tmp_path / 'skipped', *options, 'skip_nonfinite_losses=2', processes=2)
    assert skipped.returncode == 0, skipped.stderr[-3000:]
    assert log_text(tmp_path / 'skipped').count('it is skipped') == 2
    weights = torch.load(latest_checkpoint(tmp_path / 'skipped'), weights_only=False)['state_dict']
    assert all(torch.isfinite(weight).all() for weight in weights.values())
