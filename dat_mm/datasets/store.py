# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Building a folder once, whole or not at all, even when several processes try."""

import json
import os
import shutil
import socket
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

MARKER = 'dat_mm.json'


def read_marker(root):
    """The recipe that a finished folder was made with, or None where there is no folder or an empty one."""
    marker = Path(root) / MARKER
    if marker.is_file():
        return json.loads(marker.read_text())
    if Path(root).exists() and (not Path(root).is_dir() or any(Path(root).iterdir())):
        raise FileExistsError(f'{root} exists but was not made by dat_mm: choose another root, or remove it')
    return None


def _is_finished(root, recipe):
    """Whether the folder is there. One of another recipe raises FileExistsError, which names what differs."""
    found = read_marker(root)
    if found is None:
        return False
    differs = [key for key in {**found, **recipe} if found.get(key) != recipe.get(key)]
    if differs:
        had = ', '.join(f'{key}={found.get(key)}' for key in differs)
        asked = ', '.join(f'{key}={recipe.get(key)}' for key in differs)
        raise FileExistsError(f'{root} was made with {had}, not {asked}: choose another root, or remove it')
    return True


@contextmanager
def _lock(path):
    """Hold a lock that the system lets go when the process ends or dies, and yield whether that worked.

    The lock saves work and tells what is stale. Correctness rests on the rename alone.
    """
    with open(path, 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            locked = True
        except (AttributeError, OSError):  # no fcntl, or a file system without locks
            locked = False
        yield locked


def build_once(root, recipe, write):
    """Make the folder `root` by `write(folder)` unless it is there, and return it.

    The folder that is written is a temporary one beside `root`, renamed at the end. `recipe`, of JSON values, is kept
    in it; a root that another recipe made raises FileExistsError.
    """
    root = Path(root)
    recipe = json.loads(json.dumps(recipe))
    if _is_finished(root, recipe):
        return root
    home = root.resolve()  # root may be a link to an empty folder on a larger disk
    home.parent.mkdir(parents=True, exist_ok=True)
    prefix = f'.{home.name}.{socket.gethostname()}.'
    with _lock(home.parent / f'.{home.name}.lock') as locked:
        if _is_finished(root, recipe):  # by the process that held the lock before
            return root
        if locked:
            for stale in home.parent.glob(f'{prefix}*'):  # left by a process that was killed on this machine
                shutil.rmtree(stale, ignore_errors=True)
        folder = home.parent / f'{prefix}{os.getpid()}.{os.urandom(4).hex()}'
        folder.mkdir()
        try:
            write(folder)
            (folder / MARKER).write_text(json.dumps(recipe, indent=1) + '\n')
            os.rename(folder, home)
        except OSError:
            # without a lock another process may have been first, and rename does not replace a full folder
            if not _is_finished(root, recipe):
                raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return root
