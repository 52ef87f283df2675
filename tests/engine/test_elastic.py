# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Another number of processes, or accumulated gradients in their place, is the same training."""

import pytest
import torch

pytest.importorskip('mmengine')

from engine.test_stopping import SENDER, write_sender
from runs import log_text, losses, run

from dat_mm.engine.checkpoints import latest_checkpoint

pytestmark = pytest.mark.one_stack

# What a run saw: the ids of the samples and a checksum of their pixels, from each process.
WITNESS = """
import json
from pathlib import Path
import torch
from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class Witness(Hook):
    def __init__(self, file):
        self.file = file

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        own = [float(image.double().sum()) for image in data_batch['inputs']]
        seen = sum(all_gather_object(own), [])
        if runner.rank == 0:
            with Path(self.file).open('a') as log:
                log.write(json.dumps([runner.iter, seen]) + chr(10))
"""
SETTINGS = {
    # its norms count over the batch of a process on the CPU; as SyncBN does on GPUs, these do not depend on it
    'mmseg': "model['backbone']['drop_path_rate'] = 0.3\nfor head in ('decode_head', 'auxiliary_head'):\n"
    "    if head in model:\n        model[head].update(norm_cfg=dict(type='GN', num_groups=2), dropout_ratio=0.5)\n",
    'mmpretrain': "model['backbone']['drop_path_rate'] = 0.3\nmodel['train_cfg'] = None  # no mixup within a process\n",
    'mmdet': '',
}


def prepared(config, scope, tmp_path):
    extra = (
        f"{SETTINGS[scope]}custom_hooks.append(dict(type='Witness', file='{tmp_path}/seen.jsonl'))\n"
        "default_hooks['checkpoint'].update(by_epoch=False, interval=100)\n"
    )
    write_sender(config, extra, SENDER + WITNESS)
    return config


def seen(tmp_path):
    file = tmp_path / 'seen.jsonl'
    lines = file.read_text().splitlines()
    file.unlink()
    return lines


def near_all_along(one, two):
    """Whether the gradients of two runs are near in each iteration, and the weights in the end.

    The loss in a log is that of the first process alone.
    """
    norms, others = ({step: norm for step, (_, norm) in losses(path).items()} for path in (one, two))
    assert norms.keys() == others.keys()
    assert all(others[step] == pytest.approx(norm, rel=1e-4) for step, norm in norms.items())
    near(one, two)


def near(one, two):
    """Whether the last weights of two runs are the same to float tolerance."""
    weights, others = (torch.load(latest_checkpoint(path), weights_only=False)['state_dict'] for path in (one, two))
    assert weights.keys() == others.keys()
    for key in weights:  # AdamW steps by the sign of a gradient that is near zero
        torch.testing.assert_close(weights[key], others[key], rtol=1e-3, atol=2e-4, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize('scope', ['mmpretrain', 'mmdet', 'mmseg'])
def test_a_run_goes_on_with_another_number_of_processes(scope, tiny_config, tmp_path):
    """It is stopped on two, goes on with four, and ends with one: the samples are those of a run on two."""
    config = prepared(tiny_config(scope), scope, tmp_path)
    options = ('--seed', 3, '--no-validate', '--resume', '--cfg-options')
    whole = run(config, tmp_path / 'whole', *options, 'train_dataloader.batch_size=2', processes=2)
    assert whole.returncode == 0, whole.stderr[-2000:]
    expected = seen(tmp_path)

    for processes, at in ((2, 2), (4, 3), (1, -1)):
        settings = (f'train_dataloader.batch_size={4 // processes}', f'custom_hooks.1.at={at}')
        part = run(config, tmp_path / 'parts', *options, *settings, processes=processes)
        assert (part.returncode == 0) == (at == -1), part.stderr[-2000:]
    assert seen(tmp_path) == expected
    if scope != 'mmdet':  # whose heads divide by the number of objects in the batch of a process
        near_all_along(tmp_path / 'whole', tmp_path / 'parts')


@pytest.mark.slow
def test_accumulation_takes_the_place_of_processes(tiny_config, tmp_path):
    config = prepared(tiny_config('mmpretrain'), 'mmpretrain', tmp_path)
    with config.open('a') as text:  # the schedule counts epochs, since the number of iterations differs
        text.write("model['backbone']['drop_path_rate'] = 0.0\ndel param_scheduler[0]['convert_to_iter_based']\n")
        text.write('custom_hooks = []\n')  # mmengine averages weights after each iteration
    for processes, counts in ((1, 4), (2, 2), (4, 1)):
        settings = (
            *('train_dataloader.batch_size=1', f'optim_wrapper.accumulative_counts={counts}'),
            *('auto_scale_lr.enable=True', 'auto_scale_lr.base_batch_size=2'),
        )
        options = ('--seed', 3, '--no-validate', '--cfg-options', *settings)
        done = run(config, tmp_path / f'{processes}', *options, processes=processes)
        assert done.returncode == 0, done.stderr[-2000:]
    for processes in (2, 4):
        near(tmp_path / '1', tmp_path / f'{processes}')


@pytest.mark.slow
def test_another_total_batch_is_told(tiny_config, tmp_path):
    config = tiny_config('mmpretrain')
    write_sender(config)
    options = ('--seed', 3, '--no-validate', '--resume', '--cfg-options')
    run(config, tmp_path / 'work', *options, 'train_dataloader.batch_size=2', 'custom_hooks.1.at=2')
    done = run(config, tmp_path / 'work', *options, 'train_dataloader.batch_size=3')
    assert done.returncode == 0, done.stderr[-2000:]
    text = log_text(tmp_path / 'work')
    assert 'is of a run that takes 2 samples in an iteration, and this one takes 3: it goes on with other' in text
    assert 'train_dataloader.batch_size=2' in text
