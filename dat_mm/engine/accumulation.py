# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Gradients that are still being accumulated when a checkpoint is written go into it."""

import torch.distributed as dist
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook

from .checkpoint_hook import CheckpointHook


def accumulated(optim_wrapper) -> int:
    """The iterations in a step of the optimizer, by its wrapper or the config of one."""
    if isinstance(optim_wrapper, dict):
        return optim_wrapper.get('accumulative_counts', 1)
    return getattr(optim_wrapper, '_accumulative_counts', 1)


def inside_step(runner, done: int) -> bool:
    """Says whether, after so many iterations, gradients are waiting for the optimizer."""
    return done % accumulated(runner.optim_wrapper) != 0 and done < runner.max_iters


class KeepGradients(Hook):
    """Saves and restores gradients of a step of the optimizer that is not finished.

    With `accumulative_counts=n` the optimizer takes a step every n iterations, and an epoch may end in between.
    mmengine would forget the iterations since the last step. Each process has gradients of its own, and the first one
    saves them all.
    """

    priority = 'LOW'  # before the checkpoints are written

    def __init__(self):
        self._gradients, self._at, self._loaded = None, None, None

    def _collect(self, runner, done: int) -> None:
        """Brings the gradients of all processes to the first one."""
        own = [None if p.grad is None else p.grad.detach().cpu().clone() for p in runner.model.parameters()]
        everyone = [own]
        if get_world_size() > 1:
            everyone = [None] * get_world_size() if get_rank() == 0 else None
            dist.gather_object(own, everyone)
        self._gradients, self._at = everyone, done

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        done = runner.iter + 1
        writers = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook) and not hook.by_epoch]
        if inside_step(runner, done) and any(
            self.every_n_train_iters(runner, hook.interval, hook.save_begin) for hook in writers
        ):
            self._collect(runner, done)

    def after_train_epoch(self, runner) -> None:
        if inside_step(runner, runner.iter):
            self._collect(runner, runner.iter)

    def before_save_checkpoint(self, runner, checkpoint) -> None:
        if self._gradients is not None and checkpoint['meta']['iter'] == self._at:
            checkpoint['gradients'] = self._gradients

    def after_load_checkpoint(self, runner, checkpoint) -> None:
        self._loaded = checkpoint.get('gradients')

    def before_train(self, runner) -> None:
        loaded, self._loaded = self._loaded, None
        if loaded is None or not runner._resume:
            return
        if len(loaded) == get_world_size():
            own = loaded[get_rank()]
        else:
            own = [_mean(parts) for parts in zip(*loaded, strict=True)]
        for parameter, gradient in zip(runner.model.parameters(), own, strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.device, parameter.dtype)


def _mean(parts):
    """The mean of what several processes had of a gradient, which is what the optimizer would have been given."""
    there = [part for part in parts if part is not None]
    return sum(there) / len(parts) if there else None
