# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""A process that hangs is ended within a time that the config sets, and leaves the stacks of its threads."""

import faulthandler
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from mmengine.dist import get_rank
from mmengine.hooks import Hook

HUNG = 124  # the exit code, which that of `timeout` is too
GRACE = 5.0  # seconds from the stacks to the end: the processes that wait for the hung one write theirs meanwhile


class Watchdog(Hook):
    """Ends the process when nothing was finished for `timeout` seconds: no iteration, no checkpoint, no evaluation.

    The stacks are written by a thread of C, which needs no lock of Python, to `WORK_DIR/stacks/rank_N.txt`. Where
    even a thread of Python cannot run, an alarm ends the process.
    """

    priority = 'LOWEST'

    def __init__(self, timeout: float):
        self.timeout = timeout
        self._file, self._beat, self._armed, self._over = None, 0.0, 0.0, threading.Event()

    @contextmanager
    def watching(self, work_dir):
        """Watches what is done within the context."""
        path = Path(work_dir, 'stacks', f'rank_{get_rank()}.txt')
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file, self.path = path.open('w'), path
        self._over.clear()
        self._alarm = (
            threading.current_thread() is threading.main_thread()
            and hasattr(signal, 'setitimer')
            and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL
        )
        self._arm()
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            yield
        finally:
            self._over.set()
            faulthandler.cancel_dump_traceback_later()
            if self._alarm:
                signal.setitimer(signal.ITIMER_REAL, 0)
            self._file.close()
            self._file = None
            if not path.stat().st_size:
                path.unlink()
                with suppress(OSError):  # another process has a file in it, or was faster
                    path.parent.rmdir()

    def _arm(self) -> None:
        self._beat = self._armed = time.monotonic()
        faulthandler.dump_traceback_later(self.timeout, file=self._file)
        if self._alarm:
            signal.setitimer(signal.ITIMER_REAL, self.timeout + 3 * GRACE)

    def beat(self) -> None:
        """Notes that something was finished. The timers are set anew now and then, which makes it cheap."""
        self._beat = time.monotonic()
        if self._file is not None and self._beat - self._armed > self.timeout / 20:
            self._arm()

    def _watch(self) -> None:
        while not self._over.wait(max(0.05, self._armed + self.timeout + GRACE - time.monotonic())):
            if time.monotonic() >= self._armed + self.timeout + GRACE:
                print(self.path.read_text(), file=sys.stderr)
                print(
                    f'process {get_rank()}: nothing was finished in {self.timeout:g} s (hang_timeout): ended; what it '
                    f'was doing is in {self.path}',
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(HUNG)

    def before_run(self, runner) -> None:
        self.beat()

    def before_train_iter(self, runner, *args, **kwargs) -> None:
        self.beat()

    after_train_iter = after_val_iter = after_test_iter = before_run_epoch = before_train_iter

    def before_save_checkpoint(self, runner, checkpoint) -> None:
        self.beat()

    def after_val_epoch(self, runner, metrics=None) -> None:
        self.beat()

    after_test_epoch = after_val_epoch

    def before_val_epoch(self, runner) -> None:
        self.beat()

    before_test_epoch = before_train_epoch = after_train_epoch = before_val_epoch
