# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""mmengine's Runner, changed so that a killed run resumes with the losses it would have had."""

import os
from copy import deepcopy
from pathlib import Path

from mmengine.device import get_device
from mmengine.model import MMDistributedDataParallel, is_model_wrapper, revert_sync_batchnorm
from mmengine.runner import Runner as MMEngineRunner

from ..errors import UserError
from ..registry import RUNNERS
from .checkpoints import allow_mmengine_checkpoints, latest_checkpoint, read_meta
from .seeds import IterationSeed, add_draws, fetch_by_draw


class _AlreadySkipped:
    """An iterator that gives None for each batch that a resumed loop passes over, since the sampler left it out."""

    def __init__(self, batches, count):
        self.batches, self.count = batches, count

    def __iter__(self):
        return self

    def __next__(self):
        if self.count:
            self.count -= 1
            return None
        return next(self.batches)

    def skip_iter(self, count):  # called by OneDL's loop in place of __next__
        self.count = max(self.count - count, 0)


@RUNNERS.register_module()
class Runner(MMEngineRunner):
    """mmengine's Runner with seeds by place in the run (seeds.py), checkpoints written whole, and DDP on the CPU."""

    _iterations_done = 0
    _builds_training_data = False

    def train(self):
        allow_mmengine_checkpoints()
        self.register_hook(IterationSeed())
        if self._resume:
            # This comes before the data is built, because the order of the samples follows from the seed.
            self._load_from = self._load_from or latest_checkpoint(self.work_dir)
            if self._load_from is None:
                self.logger.warning(f'--resume: {self.work_dir} holds no checkpoint, training starts at the beginning')
                self._resume = False
            else:
                self._load_from = str(self._load_from)
                meta = read_meta(self._load_from)
                self._iterations_done = meta['iter']
                if meta.get('seed') is not None:
                    self._randomness_cfg['seed'] = meta['seed']
                    self.set_randomness(**self._randomness_cfg)
        return super().train()

    def build_train_loop(self, loop):
        self._builds_training_data = True
        try:
            loop = super().build_train_loop(loop)
        finally:
            self._builds_training_data = False
        skipped = getattr(loop.dataloader.batch_sampler, 'skip', 0)
        if skipped and not getattr(loop, 'fast_forward_on_resume', False):  # OneDL's loop has it, and draws no batches
            loop.dataloader_iterator = _AlreadySkipped(loop.dataloader_iterator, skipped)
        return loop

    def build_dataloader(self, dataloader, seed=None, diff_rank_seed=False):
        build = MMEngineRunner.build_dataloader
        if not self._builds_training_data or not isinstance(dataloader, dict):
            return build(dataloader, seed, diff_rank_seed)
        dataloader = deepcopy(dataloader)
        dataloader['batch_sampler'] = dict(
            type=add_draws,
            seed=self.seed,
            skip=self._iterations_done,
            inner=dataloader.get('batch_sampler'),
            drop_last=dataloader.pop('drop_last', False),
        )
        loader = build(dataloader, seed, diff_rank_seed)
        if not len(loader):
            raise UserError(
                f'the training data has {len(loader.dataset)} samples for each batch of {dataloader["batch_size"]} '
                f'on {self.world_size} processes, and incomplete batches are dropped: there is no batch'
            )
        fetch_by_draw(loader.dataset)
        return loader

    def load_checkpoint(self, *args, **kwargs):
        allow_mmengine_checkpoints()
        return super().load_checkpoint(*args, **kwargs)

    def save_checkpoint(self, out_dir, filename, *args, **kwargs):
        """Saves a checkpoint as mmengine does, but on a local disk the file appears whole or not at all."""
        if '://' in str(out_dir) or ':' in str(out_dir).split('/')[0]:
            return super().save_checkpoint(out_dir, filename, *args, **kwargs)
        partial, final = Path(out_dir, f'.{filename}'), Path(out_dir, filename)
        super().save_checkpoint(out_dir, partial.name, *args, **kwargs)
        if partial.is_file():  # only rank 0 writes
            os.replace(partial, final)

    def wrap_model(self, model_wrapper_cfg, model):
        """Wraps the model as mmengine does, and also for several processes on the CPU, which mmengine cannot."""
        on_cpu = get_device() == 'cpu'
        if not (on_cpu and self.distributed) or is_model_wrapper(model) or model_wrapper_cfg is not None:
            return super().wrap_model(model_wrapper_cfg, model)
        model = revert_sync_batchnorm(model)  # SyncBN needs a GPU
        return MMDistributedDataParallel(
            module=model,
            broadcast_buffers=False,
            find_unused_parameters=self.cfg.get('find_unused_parameters', False),
        )
