# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""mmengine's checkpoint hook, changed so that an old checkpoint is removed after the new one is safe, not before."""

from contextlib import contextmanager
from pathlib import Path

from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook

from .checkpoints import INTERRUPTED


class _Later:
    """A file backend that only notes what is to be removed."""

    def __init__(self, backend):
        self.backend, self.removals = backend, []

    def __getattr__(self, name):
        return getattr(self.backend, name)

    def remove(self, path):
        self.removals.append((self.backend.remove, path))

    def rmtree(self, path):
        self.removals.append((self.backend.rmtree, path))


class CheckpointHook(MMEngineCheckpointHook):
    """The hook with the options of mmengine's. Where a save fails, nothing was removed."""

    @contextmanager
    def _removing_later(self):
        backend, self.file_backend = self.file_backend, _Later(self.file_backend)
        try:
            yield
            removals = self.file_backend.removals
        finally:
            self.file_backend = backend
        # a file that was just written again stays
        bests = [getattr(self, 'best_ckpt_path', None), *getattr(self, 'best_ckpt_path_dict', {}).values()]
        kept = {str(path) for path in (self.last_ckpt, *bests) if path}
        for remove, path in removals:
            if str(path) not in kept:
                remove(path)

    def _save_checkpoint_with_step(self, runner, step, meta):
        if isinstance(self.file_backend, _Later):  # inside the save of a best checkpoint
            return super()._save_checkpoint_with_step(runner, step, meta)
        with self._removing_later():
            super()._save_checkpoint_with_step(runner, step, meta)
        if is_main_process():  # the run is beyond it
            Path(runner.work_dir, INTERRUPTED).unlink(missing_ok=True)

    def _save_best_checkpoint(self, runner, metrics):
        with self._removing_later():
            super()._save_best_checkpoint(runner, metrics)
