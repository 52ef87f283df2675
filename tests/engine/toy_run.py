# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""A training of three weights whose gradients are the samples, for tests in one process or, as a script, in several.

Usage: toy_run.py WORK_DIR SKIP COUNTS POISON [ITERATION ...]; in these iterations the samples of the last process are
POISON.
"""

import sys
import uuid

import torch
import torch.distributed as dist
from mmengine.dist import get_world_size
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import nn

from dat_mm.engine.processes import leave_group
from dat_mm.engine.runner import Runner
from dat_mm.errors import UserError

ITERATIONS = 6


class Samples(torch.utils.data.Dataset):
    """Two samples for each process and iteration, in order. Zeros stand for an iteration that all leave out."""

    def __init__(self, poison, poisoned):
        self.poison, self.poisoned = poison, poisoned

    def __len__(self):
        return 2 * get_world_size() * ITERATIONS

    def __getitem__(self, index):
        iteration, place = divmod(index, 2 * get_world_size())
        last = place // 2 == get_world_size() - 1
        spoiled = iteration + 1 in self.poisoned and (last or self.poison == 0)
        inputs = torch.full((3,), self.poison) if spoiled else torch.arange(3.0) + index
        sample = BaseDataElement(metainfo=dict(img_path=f'{index}.png', img_id=index))
        return dict(inputs=inputs, data_samples=sample)


class Toy(BaseModel):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 1), nn.BatchNorm1d(3, affine=False)

    def forward(self, inputs, data_samples, mode):
        inputs = torch.stack(inputs)
        self.norm(inputs)
        return dict(loss_toy=inputs.mul(self.linear.weight).sum(), loss_other=self.linear.bias.sum() * 0)


def train(work_dir, skip=0, counts=1, poison=float('nan'), poisoned=(), iterations=ITERATIONS, launcher='none', **more):
    """Trains with a checkpoint after each iteration."""
    torch.manual_seed(0)
    runner = Runner(
        Toy(),
        str(work_dir),
        train_dataloader=dict(
            batch_size=2,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            dataset=Samples(poison, poisoned),
        ),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=iterations),
        optim_wrapper=dict(
            type='OptimWrapper', optimizer=dict(type='SGD', lr=0.1, momentum=0.9), accumulative_counts=counts
        ),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=False)),
        custom_hooks=[dict(type='EMAHook', momentum=0.1, update_buffers=True)],
        cfg=dict(skip_nonfinite_losses=skip),
        launcher=launcher,
        experiment_name=f'toy {uuid.uuid4()}',  # mmengine keeps the logs of a run by its name
        **more,
    )
    runner.train()
    leave_group()


if __name__ == '__main__':
    folder, skip, counts, poison, *iterations = sys.argv[1:]
    dist.init_process_group('gloo')  # mmengine cannot, on a CPU
    try:
        train(folder, int(skip), int(counts), float(poison), [int(i) for i in iterations], launcher='pytorch')
    except UserError as error:
        sys.exit(f'error: {error}')
