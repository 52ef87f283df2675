# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Steps that leave their result in a file, and the processes that do the long ones."""

import ctypes
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from ..errors import UserError


class Step:
    """One step, whose folder holds a step.json: what was asked for, the seconds it took, and its result.

    A step whose file already has a result is done.
    """

    def __init__(self, folder: Path, **asked):
        self.folder, self.file = folder, folder / 'step.json'
        self.state = dict(asked=asked, seconds=0.0, result=None)
        if self.file.is_file():
            found = json.loads(self.file.read_text())
            if found['asked'] != json.loads(json.dumps(asked)):
                raise UserError(f'{folder} was made with other options: remove it to start over, or name a --work-dir')
            self.state = found
        self.start()

    def start(self):
        """Starts the clock, which goes on from the seconds of earlier tries."""
        self._before, self._start = self.state['seconds'], time.monotonic()

    @property
    def done(self):
        return self.state['result'] is not None

    @property
    def result(self):
        return self.state['result']

    def save(self, result=None):
        self.state.update(seconds=round(self._before + time.monotonic() - self._start, 1), result=result)
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_suffix('.partial')
        partial.write_text(json.dumps(self.state, indent=1))
        os.replace(partial, self.file)


class Failed(UserError):
    """A command ended with an exit status that is not 0."""

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def _end_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: when this process is killed, no training goes on


def run_all(commands, on_line) -> None:
    """Runs the commands {name: (command, environment, log)} side by side; where one fails, the others are stopped.

    Each line of output goes to the log of its command and to `on_line(name, line)`.
    """
    ended, running = queue.Queue(), {}

    def follow(name, log, process):
        last = ''
        with log.open('a', buffering=1) as file:  # a line at a time, for whoever reads along
            for line in process.stdout:
                file.write(line)
                last = line.strip() or last
                ended.put((name, line, None, None))
        ended.put((name, None, log, last))

    try:
        for name, (command, environment, log) in commands.items():
            log.parent.mkdir(parents=True, exist_ok=True)
            running[name] = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors='replace',
                env=os.environ | environment,
                preexec_fn=_end_with_parent if sys.platform == 'linux' else None,
            )
            threading.Thread(target=follow, args=(name, log, running[name]), daemon=True).start()
        while running:
            name, line, log, last = ended.get()
            if line is not None:
                on_line(name, line)
                continue
            process = running.pop(name)
            status = process.wait()
            process.stdout.close()
            if status:
                raise Failed(f'{last or f"exit status {status}"} (the log is {log}; run it again to go on)', status)
    finally:
        for process in running.values():
            process.terminate()
