# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Losses that are NaN or infinite end a run before its weights are saved, or their iterations are skipped."""

import math
from functools import partial

import torch
import torch.distributed as dist
from mmengine.hooks import EMAHook, Hook
from torch.nn.modules.batchnorm import _NormBase

from ..errors import UserError
from .accumulation import accumulated
from .agreement import Agreement
from .checkpoints import last_good_checkpoint
from .processes import leave_group

KEY = 'nonfinite_losses'  # in the meta of a checkpoint


def images(data_batch) -> str:
    """Names the images of a batch of any toolbox, by file and number."""
    samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
    if not isinstance(samples, (list, tuple)):
        return 'images that are not known'
    return 'images ' + ', '.join(_name(sample) for sample in samples)


def _name(sample) -> str:
    path = sample.get('img_path', 'without a file')
    key = next((key for key in ('img_id', 'sample_idx') if key in sample), None)
    return f'{path} ({key} {sample.get(key)})' if key else str(path)


def nonfinite(outputs: dict) -> dict:
    """Finds the losses of an iteration that are not finite, by name; the total one is `loss`."""
    values = {name: _number(value) for name, value in outputs.items() if 'loss' in name}
    return {name: value for name, value in values.items() if not math.isfinite(value)}


def _number(loss) -> float:
    return loss.item() if isinstance(loss, torch.Tensor) else float(loss)


class FiniteLosses(Hook):
    """Ends a training at a loss that is NaN or infinite, or skips the iteration in all processes.

    Without skipping it looks at the losses after the iteration, when mmengine has fetched them for its log: a GPU is
    not waited for once more. Weights that were touched are in no checkpoint then, since this comes before all that
    writes one. To skip, a GPU is waited for between the two passes.

    In a skipped iteration there is no backward pass. With accumulated gradients the step of the optimizer is taken with
    those of its other iterations. Averaged weights and the running statistics of normalisation stay as they were.

    Args:
        agreement: the flags that all processes share.
        limit: iterations of the run that may be skipped.
    """

    priority = 'VERY_HIGH'  # before the averages of the weights and the checkpoints

    def __init__(self, agreement: Agreement, limit: int = 0):
        if not isinstance(limit, int) or limit < 0:
            raise UserError(f'skip_nonfinite_losses={limit!r}: a number of iterations, 0 to end at the first')
        self.limit, self.count = limit, 0
        self._agreement, self._raised = agreement, False
        self._norms, self._statistics, self._averages, self._runner = [], [], [], None
        agreement.add('nonfinite', lambda: self._raised)

    def before_train(self, runner) -> None:
        if not self.limit:
            return
        self._runner = runner
        wrapper = runner.optim_wrapper
        wrapper.update_params = torch.compiler.disable(partial(self._update, wrapper.update_params))
        self._norms = [module for module in runner.model.modules() if isinstance(module, _NormBase)]
        self._averages = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
        for hook in self._averages:
            hook.after_train_iter = partial(self._unless_skipped, hook.after_train_iter)

    def after_train(self, runner) -> None:
        if self._runner is not None:
            del runner.optim_wrapper.update_params
        for hook in self._averages:
            del hook.after_train_iter
        self._runner, self._norms, self._averages = None, [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        self._raised = False
        self._statistics = [(buffer, buffer.clone()) for norm in self._norms for buffer in norm.buffers()]

    def _update(self, update, loss, step_kwargs=None, zero_kwargs=None) -> None:
        """Takes the place of the optimizer wrapper's update_params."""
        self._raised = not math.isfinite(_number(loss))
        if self._agreement.any('nonfinite'):
            for buffer, before in self._statistics:
                buffer.copy_(before)
            self._pass_over(step_kwargs or {}, zero_kwargs or {})
        else:
            update(loss, step_kwargs, zero_kwargs)

    def _pass_over(self, step_kwargs: dict, zero_kwargs: dict) -> None:
        """Counts an iteration without gradients, and finishes the step of the optimizer where it is the last of one."""
        wrapper = self._runner.optim_wrapper
        wrapper._inner_count += 1
        if accumulated(wrapper) == 1 or not wrapper.should_update():
            return
        parameters = list(self._runner.model.parameters())
        average_gradients(parameters)
        if any(parameter.grad is not None for parameter in parameters):
            wrapper.step(**step_kwargs)
            wrapper.zero_grad(**zero_kwargs)

    def _unless_skipped(self, after_train_iter, *args, **kwargs) -> None:
        if not self._agreement.any('nonfinite'):
            after_train_iter(*args, **kwargs)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if not self.limit:
            self._raised = not math.isfinite(_number((outputs or {}).get('loss', 0)))
        if not self._agreement.any('nonfinite'):
            return
        self.count += 1
        own = None
        if self._raised:
            values = ', '.join(f'{name}={value}' for name, value in nonfinite(outputs or {}).items())
            own = f'rank {runner.rank}: {values} for {images(data_batch)}'
        told = '; '.join(filter(None, self._agreement.gather(own)))
        place = f'iteration {runner.iter + 1}, {told}'
        if self.count <= self.limit:
            runner.logger.warning(f'non-finite loss {self.count} of at most {self.limit}: {place}; it is skipped')
        else:
            self._end(runner, place)

    def _end(self, runner, place: str) -> None:
        more = f' {self.count}, more than skip_nonfinite_losses={self.limit}' if self.limit else ''
        good = last_good_checkpoint(runner.work_dir) if runner.rank == 0 else None
        good = self._agreement.gather(good)[0]  # one disk is asked
        kept = f'the last good checkpoint is {good}' if good else f'there is no good checkpoint in {runner.work_dir}'
        message = f'non-finite loss{more}: {place}; the run ends, {kept}'
        if runner.rank == 0:
            runner.logger.error(message)
        runner.visualizer.close()
        leave_group(1)
        raise UserError(message)

    def before_save_checkpoint(self, runner, checkpoint) -> None:
        if self.count:
            checkpoint['meta'][KEY] = self.count

    def after_load_checkpoint(self, runner, checkpoint) -> None:
        if runner._resume:
            self.count = checkpoint['meta'].get(KEY, 0)


def average_gradients(parameters) -> None:
    """Averages gradients over the processes, as DDP does in a backward pass, for a step whose last one is left out."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    there = torch.tensor([int(parameter.grad is not None) for parameter in parameters], device=parameters[0].device)
    dist.all_reduce(there, op=dist.ReduceOp.MAX)
    for parameter in (parameter for parameter, held in zip(parameters, there.tolist(), strict=True) if held):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()
