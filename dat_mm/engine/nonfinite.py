# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""A loss that is not finite: named, with the images it came from; the run stops, or goes on without it."""

import math

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from torch.nn.modules.batchnorm import _NormBase

from ..errors import UserError
from .checkpoints import latest_checkpoint

COUNT = 'nonfinite_losses'  # under which checkpoints keep how many were skipped


def images_of(data_batch) -> list[str]:
    """What the toolboxes call the images of a batch: their files, or else their ids."""
    samples = data_batch.get('data_samples') if isinstance(data_batch, dict) else None
    found = []
    for sample in samples or ():
        known = getattr(sample, 'metainfo', {})
        name = next((known[key] for key in ('img_path', 'img_id', 'sample_idx') if known.get(key) is not None), None)
        found.append('an image without a name' if name is None else str(name))
    return found


class NonFiniteLoss(Hook):
    """Ends a run whose loss is infinite or not a number, or skips up to `limit` such iterations.

    With a limit of 0 nothing waits for a GPU: what the loss was is looked at one iteration later, and before a
    checkpoint is written, so that none has weights that such a loss has touched. Otherwise all processes agree before
    each backward pass. The batch is then left out: no gradient, no running mean of a norm is changed by it. Where
    gradients are accumulated, those of the step's other batches count.

    Args:
        agreement: of the processes; the one that stops on signals asks it for this hook too.
        limit: how many iterations may be skipped in a run, those before it was resumed included.
    """

    priority = 'LOW'  # before checkpoints are written

    def __init__(self, agreement, limit: int = 0):
        self.agreement, self.limit = agreement, limit
        self.message = None  # of an iteration of this process that nobody has told yet
        self._pending, self._skipped, self._update = None, False, None

    def before_train(self, runner) -> None:
        self.agreement.open()
        if self.limit:
            model = runner.model.module if is_model_wrapper(runner.model) else runner.model
            norms = [layer for layer in model.modules() if isinstance(layer, _NormBase)]
            self._buffers = [buffer for layer in norms for buffer in layer.buffers()]
            self._update = runner.optim_wrapper.update_params
            runner.optim_wrapper.update_params = lambda *args, **kwargs: self._guarded(runner, *args, **kwargs)

    def after_train(self, runner) -> None:
        if self._update is not None:
            del runner.optim_wrapper.update_params
            self._update = None
        self.look(runner)

    def before_train_iter(self, runner, batch_idx, data_batch=None) -> None:
        if self.limit:
            self._kept = [buffer.clone() for buffer in self._buffers]

    def _guarded(self, runner, loss, *args, **kwargs) -> None:
        """Takes a step with a loss that is finite in all processes, and leaves out one that is not."""
        (self._skipped,) = self.agreement.any(not bool(torch.isfinite(loss)))
        if not self._skipped:
            return self._update(loss, *args, **kwargs)
        with torch.no_grad():
            for buffer, kept in zip(self._buffers, self._kept, strict=True):
                buffer.copy_(kept)
        wrapper = runner.optim_wrapper
        wrapper._inner_count += 1
        if wrapper.should_update():
            groups = wrapper.optimizer.param_groups
            if any(parameter.grad is not None for group in groups for parameter in group['params']):
                wrapper.step()
                wrapper.zero_grad()
        return None

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        losses = {
            name: value.detach()
            for name, value in (outputs or {}).items()
            if 'loss' in name and isinstance(value, torch.Tensor)
        }
        if self.limit:
            if self._skipped:
                self._tell_skipped(runner, losses, data_batch)
            return
        self._look_at_pending()
        if losses:
            loss = losses.get('loss', next(iter(losses.values())))
            finite = torch.isfinite(loss).all().to('cpu', non_blocking=True)
            event = None
            if loss.is_cuda:
                event = torch.cuda.Event()
                event.record()
            self._pending = finite, event, runner.iter + 1, losses, images_of(data_batch)
            if event is None:
                self._look_at_pending()

    def _look_at_pending(self) -> None:
        """Looks at the loss that was computed before, which a GPU has by now."""
        if self._pending is None:
            return
        (finite, event, iteration, losses, images), self._pending = self._pending, None
        if event is not None:
            event.synchronize()
        if not finite:
            self.message = describe(iteration, losses, images)

    def look(self, runner) -> None:
        """Stops the run, in all processes, if any loss up to now was not finite. All of them call it before a save."""
        if self.limit:
            return
        self._look_at_pending()
        if self.agreement.any(self.message is not None)[0]:
            self.stop(runner)

    def stop(self, runner) -> None:
        """Ends the run; all processes come here together."""
        told = '; '.join(self.agreement.gather(self.message))
        last = latest_checkpoint(runner.work_dir)
        kept = f'the last checkpoint before it is {last}' if last else 'there is no checkpoint before it'
        raise UserError(f'{told}; {kept}; skip_nonfinite_losses=N skips up to N such iterations')

    def _tell_skipped(self, runner, losses, data_batch) -> None:
        bad = any(not math.isfinite(float(value.mean())) for value in losses.values())
        own = describe(runner.iter + 1, losses, images_of(data_batch)) if bad else None
        told = '; '.join(self.agreement.gather(own))
        count = runner.message_hub.runtime_info.get(COUNT, 0) + 1
        runner.message_hub.update_info(COUNT, count)
        self._skipped = False
        if count > self.limit:
            raise UserError(f'{told}: {count} iterations, and skip_nonfinite_losses is {self.limit}')
        runner.logger.warning(f'{told}: skipped, {count} of at most {self.limit}')


def describe(iteration: int, losses: dict, images: list[str]) -> str:
    """One line about a loss: where it was, which of its parts are not finite, and of which images."""
    values = {name: float(value.float().mean()) for name, value in losses.items()}
    parts = ', '.join(f'{name} {value}' for name, value in values.items() if not math.isfinite(value))
    return f'iteration {iteration}, process {get_rank()}: {parts}, from {", ".join(images) or "images without names"}'
