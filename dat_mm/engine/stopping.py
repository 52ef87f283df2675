# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Stopping a training that is asked to, with a checkpoint that it goes on from as if nothing had been."""

import os
import signal
import sys
import threading

from mmengine.hooks import Hook

from .accumulation import inside_step
from .agreement import Agreement
from .checkpoints import INTERRUPTED, note_last
from .processes import leave_group

REQUEUE = 75  # the exit code of a run that wants to go on: "temporary failure" of sysexits.h
SIGNALS = tuple(getattr(signal, name) for name in ('SIGTERM', 'SIGUSR1') if hasattr(signal, name))


class StopOnSignal(Hook):
    """Ends a training after SIGTERM or SIGUSR1: all processes finish the iteration, and the first writes a checkpoint.

    Slurm sends these before it takes a node away. The exit code is 75. A signal to one process is enough, since all of
    them agree after each iteration. With accumulated gradients, they go on to the next step of the optimizer, because
    a checkpoint holds no gradients. During a validation the run ends at once: it goes on from the checkpoint before it,
    and validates again.

    Args:
        agreement: the flags that all processes share.
        grace: seconds after SIGTERM when a process ends without a checkpoint, if by then no iteration was finished.
            Where another process died, none will be.
    """

    priority = 'LOWEST'  # after the schedulers, the moving averages and the regular checkpoints

    def __init__(self, agreement: Agreement, grace: float = 25):
        self.grace = grace
        self.asked = None
        self._agreement, self._before, self._timer = agreement, {}, None
        self._at_epoch_end = False
        agreement.add('stop', lambda: self.asked is not None)

    def listen(self) -> None:
        """Begins to notice signals. The time until the first iteration counts too: data and model are built in it."""
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}

    def stop_listening(self) -> None:
        for number, handler in self._before.items():
            if handler is not None:  # not one of Python
                signal.signal(number, handler)
        self._before = {}
        self._stop_timer()

    def after_train(self, runner) -> None:
        self.stop_listening()

    def _on_signal(self, number, frame) -> None:
        self.asked = signal.Signals(number).name
        if number == signal.SIGTERM and self._timer is None:  # SIGUSR1 is a warning long before
            self._timer = threading.Timer(self.grace, self._give_up)
            self._timer.daemon = True
            self._timer.start()

    def _give_up(self) -> None:
        print(f'{self.asked}: no iteration was finished in {self.grace:g} s, no checkpoint is written', file=sys.stderr)
        sys.stderr.flush()
        os._exit(128 + int(signal.SIGTERM))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if not self._agreement.any('stop'):
            return
        done = runner.iter + 1
        if inside_step(runner, done) or done >= runner.max_iters:
            return
        loop = runner.train_loop
        if hasattr(loop, 'run_epoch') and done % len(loop.dataloader) == 0:
            self._at_epoch_end = True  # what the other hooks do there comes first
            return
        self._save_and_leave(runner, done, by_epoch=False)

    def after_train_epoch(self, runner) -> None:
        if self._at_epoch_end:
            self._save_and_leave(runner, runner.iter, by_epoch=True)

    def _save_and_leave(self, runner, done: int, by_epoch: bool) -> None:
        self._stop_timer()
        reason = self.asked or 'a signal to another process'
        runner.logger.info(f'{reason}: stopping after iteration {done}')
        runner.save_checkpoint(runner.work_dir, INTERRUPTED, by_epoch=by_epoch)
        if runner.rank == 0:
            note_last(runner.work_dir, INTERRUPTED)
        self._leave(runner, f'stopped after iteration {done}; --resume goes on from there')

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None) -> None:
        if self._before and self._agreement.any('stop'):
            self._stop_timer()
            self._leave(runner, 'stopped in a validation; --resume goes on from the last checkpoint')

    def _leave(self, runner, message: str) -> None:
        self._agreement.wait()  # none leaves before the checkpoint is there
        runner.logger.info(message)
        runner.visualizer.close()
        leave_group(REQUEUE)
        raise SystemExit(REQUEUE)


def done_of_epoch(iterations: int, epochs: int, length: int) -> int:
    """How many iterations of an epoch that is not done yet are done, of so many iterations and epochs of the run.

    All of them are where a checkpoint was written after the last one, before the epoch was counted.
    """
    return length if iterations == (epochs + 1) * length else iterations % length


class ValidateAgain(Hook):
    """Validates first where a resumed checkpoint was written just before a validation.

    Nothing says whether that was finished, and the record of the best checkpoint depends on it. A second time changes
    nothing.
    """

    priority = 'LOWEST'

    def before_train(self, runner) -> None:
        if not runner._resume or runner.val_loop is None:
            return
        loop = runner.train_loop
        by_epoch = hasattr(loop, 'run_epoch')
        done = loop._epoch if by_epoch else loop._iter
        if by_epoch and done_of_epoch(loop._iter, loop._epoch, len(loop.dataloader)):
            return
        loop._decide_current_val_interval()
        if done and done >= loop.val_begin and (done % loop.val_interval == 0):
            runner.val_loop.run()
            runner.model.train()
