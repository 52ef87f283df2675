# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Ending a run that hangs, after the stacks of all its threads were written."""

import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
from contextlib import nullcontext, suppress
from pathlib import Path

from mmengine.hooks import Hook

from ..errors import UserError

GRACE = 10  # seconds for the other processes to write their stacks, before a launcher ends them
LATER = 5  # seconds by which a process that cannot run Python ends after one that can: the first saves checkpoints too
FOLDER = 'stacks'  # in the work dir
STACKS = getattr(signal, 'SIGUSR2', None)  # has a process write its stacks


class EndWhenHung(Hook):
    """Ends the process when no iteration was finished for so many seconds, with the stacks of its threads.

    What counts beside an iteration: the begin and the end of an epoch, and a checkpoint. The stacks go to stderr and to
    a file. Those of the workers of a data loader go to the same file.

    A thread watches, so that an iteration only has to note the time. Where C code keeps Python's lock no thread can
    run. Then faulthandler's own thread, which needs no lock, writes the stacks to the file and ends the process.

    Args:
        timeout: the seconds.
        work_dir: where the folder of the stacks is made.
        rank: of this process.
        logger: which is told that the run was ended.
    """

    priority = 'LOWEST'  # after all that belongs to an iteration

    def __init__(self, timeout: float, work_dir: str | Path, rank: int, logger):
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
            raise UserError(f'hang_timeout={timeout!r}: a number of seconds, 0 for no limit')
        self.timeout, self.logger = timeout, logger
        self.path = Path(work_dir, FOLDER, f'rank_{rank}.txt')
        self._last, self._done = 0.0, threading.Event()
        self._file, self._thread = None, None

    def __enter__(self):
        while self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # another process has just removed the folder
                self._file = self.path.open('a')
        if STACKS is not None:  # workers are forked with it
            faulthandler.register(STACKS, file=self._file)
        self._done.clear()
        self._progress()
        self._thread = threading.Thread(target=self._watch, name='EndWhenHung', daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        if STACKS is not None:
            faulthandler.unregister(STACKS)
        self._file.close()
        self._file = None
        with suppress(OSError):  # another process has removed the folder, or its file is in it
            if not self.path.stat().st_size:
                self.path.unlink()
                self.path.parent.rmdir()

    def _progress(self, *_, **__) -> None:
        self._last = time.monotonic()

    _before_epoch = _after_epoch = _after_iter = before_save_checkpoint = after_load_checkpoint = _progress

    def _watch(self) -> None:
        tick = min(1, self.timeout / 10)
        while (left := self._last + self.timeout - time.monotonic()) > 0:
            # later than this thread, for when it cannot run, and before the others are ended
            faulthandler.dump_traceback_later(left + min(LATER, self.timeout / 2), exit=True, file=self._file)
            if self._done.wait(min(left, tick)):
                return
        self._end()

    def _end(self) -> None:
        """Writes the stacks and ends the process, even if a disk or a lock of the log keeps this thread waiting."""
        faulthandler.cancel_dump_traceback_later()
        workers = multiprocessing.active_children()
        threading.Timer(GRACE, _exit_with, (workers,)).start()
        line = f'no iteration in {self.timeout:g} s: ended; the stacks are in {self.path.parent}'
        for file in (sys.__stderr__, self._file):
            print(f'{self.path.stem}: {line}', file=file, flush=True)
            faulthandler.dump_traceback(file=file)
        for worker in workers if STACKS is not None else ():
            print(f'\n{worker.name}', file=self._file, flush=True)
            with suppress(OSError):  # it has ended
                os.kill(worker.pid, STACKS)
                time.sleep(0.05)  # so that the next one does not write between its lines
        self.logger.error(line)


def watch(runner):
    """The context in which the process of a runner is ended when it hangs, as `hang_timeout` of its config says."""
    timeout = runner.cfg.get('hang_timeout')
    if not timeout:
        return nullcontext()
    hook = EndWhenHung(timeout, runner.work_dir, runner.rank, runner.logger)
    runner.register_hook(hook)
    return hook


def _exit_with(workers) -> None:
    """Ends the process and its workers: one that hangs would outlive it, and keep what reads its output waiting."""
    try:
        for worker in workers:
            worker.kill()
    finally:
        os._exit(1)
