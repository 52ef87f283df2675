# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""How the tasks of a step of Slurm find each other and their GPUs, by the variables that Slurm gives them."""

import os

import pytest
import torch
from mmengine.config import Config

from dat_mm.commands.launcher import FIRST_PORT, PORTS, from_slurm, set_launcher
from dat_mm.errors import UserError


def task(**changes):
    """The environment of the fourth task of eight, which is the second one on its node."""
    found = dict(SLURM_PROCID='3', SLURM_NTASKS='8', SLURM_LOCALID='1', SLURM_JOB_ID='70', SLURM_STEP_ID='2')
    return {**found, 'SLURM_STEP_NODELIST': 'here', **changes}


def test_the_variables_of_a_task_are_translated():
    found = from_slurm(task())
    port = found.pop('MASTER_PORT')
    assert found == dict(RANK='3', WORLD_SIZE='8', LOCAL_RANK='1', MASTER_ADDR='here')
    assert FIRST_PORT <= int(port) < FIRST_PORT + PORTS
    given = from_slurm(task(MASTER_ADDR='there', MASTER_PORT='1234'))
    assert (given['MASTER_ADDR'], given['MASTER_PORT']) == ('there', '1234')


def test_no_two_steps_that_may_share_a_node_have_one_port():
    """Of a hundred jobs in a row, each with a few steps."""
    steps = [(job, step) for job in range(123_400, 123_500) for step in range(8)]
    ports = {from_slurm(task(SLURM_JOB_ID=str(job), SLURM_STEP_ID=str(step)))['MASTER_PORT'] for job, step in steps}
    assert len(ports) == len(steps)


@pytest.mark.parametrize(('gpus', 'used'), [(0, '1'), (1, '0'), (4, '1')], ids=['none', 'its own', 'all of the node'])
def test_a_task_uses_a_gpu_that_it_sees(gpus, used, monkeypatch):
    """CUDA_VISIBLE_DEVICES is as Slurm sets it: GPUs are counted within."""
    assert from_slurm(task(), gpus)['LOCAL_RANK'] == used
    monkeypatch.setattr(os, 'environ', task(LOCAL_RANK='1'))
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
    monkeypatch.setattr('mmengine.device.get_device', lambda: 'cuda')
    cfg = Config()
    set_launcher(cfg, 'slurm')
    assert os.environ['LOCAL_RANK'] == used and os.environ['MASTER_ADDR'] == 'here'
    assert cfg.launcher == 'pytorch'  # which has mmengine use that GPU


def test_a_list_of_nodes_that_nobody_can_tell_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(UserError, match=r"the nodes of 'node\[1-2\]'; set MASTER_ADDR"):
        from_slurm(task(SLURM_STEP_NODELIST='node[1-2]'))
