# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""FSDP with two processes on the CPU: it trains, its checkpoint is a whole model, and it goes on from it."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmengine')

from runs import ROOT, add_plugin, losses, run

from dat_mm.commands.train import train
from dat_mm.engine.checkpoints import latest_checkpoint
from dat_mm.errors import UserError

pytestmark = pytest.mark.one_stack

# A hook that tells, from each process, how much of the model it holds, its rules of decay, and the norm of gradients.
PLUGIN = """
import json
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class Tell(Hook):
    def after_train(self, runner):
        held = sum(p.numel() for p in runner.model.parameters())
        groups = runner.optim_wrapper.optimizer.param_groups
        names = {id(p): name for name, p in runner.model.named_parameters()}
        decayed = [names[id(p)] for g in groups if g['weight_decay'] > 0 for p in g['params']]
        told = all_gather_object([held, decayed])
        if runner.rank == 0:
            print('TOLD', json.dumps(told))
"""


@pytest.mark.slow
def test_two_processes_share_a_model(tiny_config, tmp_path):
    config = tiny_config('mmpretrain')
    settings = (
        "custom_hooks = [dict(type='Tell')]\nstrategy = dict(type='ShardedStrategy')\n"
        "optim_wrapper['paramwise_cfg'] = dict(flat_decay_mult=0.0)\n"
        "optim_wrapper['optimizer']['weight_decay'] = 0.05\n"
    )
    add_plugin(config, PLUGIN, settings)
    options = ('--seed', 3)
    done = run(config, tmp_path / 'work', *options, '--cfg-options', 'train_cfg.max_epochs=2', processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    (first, decayed), (second, _) = json.loads(done.stdout.split('TOLD ')[1].split('\n')[0])
    last = latest_checkpoint(tmp_path / 'work')
    state = torch.load(last, weights_only=False)['state_dict']
    numbers = sum(value.numel() for value in state.values())
    assert 0.4 * numbers < first < 0.6 * numbers and 0.4 * numbers < second < 0.6 * numbers
    names = {name.replace('_fsdp_wrapped_module.', '') for name in decayed}
    assert names == {key for key, value in state.items() if value.ndim != 1}

    done = run(config, tmp_path / 'work', *options, '--resume', processes=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert latest_checkpoint(tmp_path / 'work').name == 'epoch_4.pth'
    out = tmp_path / 'metrics.json'
    last = latest_checkpoint(tmp_path / 'work')
    tested = run(config, tmp_path / 'tested', last, '--out', out, tool='test.py')
    assert tested.returncode == 0, tested.stderr[-2000:]
    assert f'accuracy/top1: {json.loads(out.read_text())["accuracy/top1"]:.4f}' in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize('sharded', [False, True], ids=['ddp', 'fsdp'])
def test_recomputing_by_measured_cost_changes_no_loss(sharded, tiny_config, tmp_path):
    """The two processes measure for themselves."""
    config = tiny_config('mmpretrain')
    if sharded:
        config.write_text(f"{config.read_text()}\nstrategy = dict(type='ShardedStrategy')\n")
    for name, with_cp in (('plain', False), ('auto', 'auto')):
        settings = ('train_cfg.max_epochs=1', f'model.backbone.with_cp={with_cp}')
        done = run(config, tmp_path / name, '--seed', 3, '--cfg-options', *settings, processes=2)
        assert done.returncode == 0, done.stderr[-3000:]
        assert ("with_cp='auto': of " in done.stdout) == (name == 'auto')
    assert losses(tmp_path / 'auto') == losses(tmp_path / 'plain') != {}


def test_a_save_that_fails_leaves_the_old_checkpoint(monkeypatch, tmp_path):
    from dat_mm.engine.sharding import FSDPStrategy, ShardedStrategy

    def fail(self, filename):
        Path(filename).write_text('half')
        raise OSError('the disk is full')

    monkeypatch.setattr(FSDPStrategy, 'save_checkpoint', fail)
    monkeypatch.setattr(FSDPStrategy, '_is_full_state_dict', lambda self: True)
    path = tmp_path / 'epoch_1.pth'
    path.write_text('old')
    with pytest.raises(OSError, match='full'):
        ShardedStrategy.__new__(ShardedStrategy).save_checkpoint(str(path))
    assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize('key', ['skip_bad_objects', 'skip_bad_samples', 'skip_nonfinite_losses'])
def test_what_it_cannot_do_is_told(key, tiny_config, tmp_path):
    options = ['strategy.type=ShardedStrategy', f'{key}=3']
    with pytest.raises(UserError, match=rf'^{key}=3: a run with a strategy \(ShardedStrategy\) has no such limit$'):
        train(tiny_config('mmpretrain'), cfg_options=options, work_dir=tmp_path)


def test_the_config_is_that_of_the_base_model():
    from mmengine.config import Config

    base, sharded = (Config.fromfile(ROOT / f'configs/imagenet/datpp-base_32xb128{s}_in1k.py') for s in ('', '-fsdp'))
    assert sharded.pop('strategy') == dict(type='ShardedStrategy')
    assert sharded.optim_wrapper.pop('use_fsdp')
    assert sharded.to_dict() == base.to_dict()
