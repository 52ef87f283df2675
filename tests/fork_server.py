# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""A process that has imported the toolboxes, and forks for each run of a tool, since to import them takes ten seconds.

A request on stdin is a line of JSON: {'script', 'arguments', 'environments', 'out', 'err', 'limit'}. The script runs
once for each environment, all at the same time, with its output in the two files. The answer is the exit status: that
of the first run that failed, whose peers are then ended as torchrun ends them.
"""

import atexit
import json
import os
import runpy
import signal
import sys
import threading
import time
import traceback
from contextlib import suppress

GRACE = 30.0  # seconds that a peer of a failed run has to end


def run(script, arguments, environment, out, err):
    """Runs a script in this process as `python script arguments` does, and returns its exit status."""
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.clear()
    os.environ.update(environment)
    folders = [folder for folder in environment.get('PYTHONPATH', '').split(os.pathsep) if folder]
    sys.path[:0] = [os.path.dirname(script), *folders]
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name='__main__')
        return 0
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1


def answer(script, arguments, environments, out, err, limit):
    """Forks for each environment, waits for all, and returns the exit status of the first that failed."""
    running = set()
    for environment in environments:
        child = os.fork()
        if not child:
            status = 1
            try:
                os.setpgid(0, 0)
                status = run(script, arguments, environment, out, err)
                sys.stdout.flush()
                sys.stderr.flush()
            finally:
                leave(status)
        with suppress(OSError):
            os.setpgid(child, child)  # as it does itself, whoever is first
        running.add(child)
    first, end = None, time.monotonic() + limit
    while running:
        for child in list(running):
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                running.remove(child)
                kill(child, signal.SIGKILL)  # what it left behind
                status = os.waitstatus_to_exitcode(status)
                if status and first is None:
                    first, end = status, min(end, time.monotonic() + GRACE)
                    for peer in running:
                        kill(peer, signal.SIGTERM)
        if time.monotonic() > end:
            first = first or -signal.SIGKILL
            for peer in running:
                kill(peer, signal.SIGKILL)
        time.sleep(0.02)
    return first or 0


def leave(status):
    """Ends a forked process as Python ends, with what was registered for that."""
    threading._shutdown()
    atexit._run_exitfuncs()
    os._exit(status)


def kill(group, number):
    with suppress(ProcessLookupError):
        os.killpg(group, number)


def main():
    answers = os.dup(1)
    os.dup2(2, 1)  # what the toolboxes print as they are imported is no answer
    import mmdet.apis  # noqa: F401
    import mmpretrain.apis  # noqa: F401
    import mmseg.apis  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401

    import dat_mm.commands.test
    import dat_mm.commands.train  # noqa: F401

    for line in sys.stdin:
        status = answer(**json.loads(line))
        os.write(answers, f'{status}\n'.encode())


if __name__ == '__main__':
    main()
