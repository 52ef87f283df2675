# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Build a folder once, whole or not at all, whoever else is building it."""

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
    """What a finished folder was made with; None where there is no folder, or an empty one."""
    marker = Path(root) / MARKER
    if marker.is_file():
        return json.loads(marker.read_text())
    if Path(root).exists() and (not Path(root).is_dir() or any(Path(root).iterdir())):
        raise FileExistsError(f'{root} exists but was not made by dat_mm: choose another root, or remove it')
    return None


def _is_finished(root, recipe):
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
    """Held by one process, let go when it ends or dies; yields whether there is one.

    It saves work and tells what is stale. Correctness rests on the rename alone.
    """
    with open(path, 'w') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            locked = True
        except (AttributeError, OSError):  # no fcntl, or a file system without locks
            locked = False
        yield locked


def build_once(root, recipe, write):
    """`write(folder)` fills a temporary sibling, then renamed to `root`; a finished `root` is left alone.

    `recipe` (of JSON values) is kept in the folder; a root made by another recipe raises FileExistsError.
    """
    root = Path(root)
    recipe = json.loads(json.dumps(recipe))
    if _is_finished(root, recipe):
        return root
    home = root.resolve()  # `root` may be a link to an empty folder on a larger disk
    home.parent.mkdir(parents=True, exist_ok=True)
    prefix = f'.{home.name}.{socket.gethostname()}.'
    with _lock(home.parent / f'.{home.name}.lock') as locked:
        if _is_finished(root, recipe):  # by the one who held the lock
            return root
        if locked:
            for stale in home.parent.glob(f'{prefix}*'):  # of a process killed on this machine
                shutil.rmtree(stale, ignore_errors=True)
        folder = home.parent / f'{prefix}{os.getpid()}.{os.urandom(4).hex()}'
        folder.mkdir()
        try:
            write(folder)
            (folder / MARKER).write_text(json.dumps(recipe, indent=1) + '\n')
            os.rename(folder, home)
        except OSError:
            # where there is no lock another process may have been first: a full folder is not replaced
            if not _is_finished(root, recipe):
                raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return root
