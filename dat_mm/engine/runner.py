# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""mmengine's Runner, changed so that a killed run resumes with the losses it would have had."""

from copy import deepcopy
from pathlib import Path

from mmengine.device import get_device
from mmengine.dist import is_main_process
from mmengine.hooks import CheckpointHook as MMEngineCheckpointHook
from mmengine.model import MMDistributedDataParallel, is_model_wrapper, revert_sync_batchnorm
from mmengine.runner import EpochBasedTrainLoop
from mmengine.runner import Runner as MMEngineRunner

from ..errors import FULL, UserError
from ..registry import RUNNERS
from ..weights import written_whole
from .accumulation import KeepGradients, accumulated
from .agreement import Agreement
from .checkpoint_hook import CheckpointHook
from .checkpoints import latest_checkpoint, read_meta, read_safely
from .drops import DropBySample
from .fetching import build_dataset, fetch_by_draw, fetch_named
from .finite_losses import FiniteLosses
from .hanging import watch
from .seeds import IterationSeed, add_draws, undivided
from .stopping import StopOnSignal, ValidateAgain, done_of_epoch


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


def _kept(folder) -> str:
    """The end of a line about a run that could not write, which names what is left of it."""
    last = latest_checkpoint(folder)
    return f'; the last good checkpoint is {last}' if last else ''


def begin_inside_epoch(loop: EpochBasedTrainLoop, done: int) -> None:
    """Makes the first epoch of a loop begin after so many batches, which are not loaded but counted."""
    batches, run_epoch, run_iter = loop.dataloader.batch_sampler, loop.run_epoch, loop.run_iter
    batches.skip = done

    def run_rest():
        loop.run_iter = lambda idx, data_batch: run_iter(idx + done, data_batch)
        run_epoch()
        loop.run_iter, loop.run_epoch, batches.skip = run_iter, run_epoch, 0

    loop.run_epoch = run_rest


@RUNNERS.register_module()
class Runner(MMEngineRunner):
    """mmengine's Runner with seeds by place in the run (seeds.py), checkpoints written whole, and DDP on the CPU."""

    _iterations_done = _epochs_done = 0
    _group = None  # samples that are put together, by aspect ratio for instance: the batch size of a run's first start
    _builds_training_data = False
    _end_when_hung = None

    def train(self):
        read_safely()
        self.register_hook(IterationSeed())
        self.register_hook(DropBySample())
        self.register_hook(KeepGradients())
        agreement = Agreement()
        self.register_hook(agreement)
        self.register_hook(FiniteLosses(agreement, self.cfg.get('skip_nonfinite_losses') or 0))
        stop = StopOnSignal(agreement)
        self.register_hook(stop)
        self.register_hook(ValidateAgain())
        stop.listen()
        try:
            with self._watched():
                return self._train()
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise UserError(f'a file could not be written: {error}{_kept(self.work_dir)}') from error
        finally:
            stop.stop_listening()

    def val(self):
        with self._watched():
            return super().val()

    def test(self):
        with self._watched():
            return super().test()

    def _watched(self):
        """The context in which this process is ended when it hangs, one for all phases."""
        if self._end_when_hung is None:
            self._end_when_hung = watch(self)
        return self._end_when_hung

    def _train(self):
        if self._resume:
            # This comes before the data is built, because the order of the samples follows from the seed.
            self._load_from = self._load_from or latest_checkpoint(self.work_dir, self.logger.warning)
            if self._load_from is None:
                self.logger.warning(f'--resume: {self.work_dir} holds no checkpoint, training starts at the beginning')
                self._resume = False
            else:
                self._load_from = str(self._load_from)
                meta = read_meta(self._load_from)
                self._iterations_done, self._epochs_done = meta['iter'], meta['epoch']
                self._take_batches_from(meta)
                if meta.get('seed') is not None:
                    self._randomness_cfg['seed'] = meta['seed']
                    self.set_randomness(**self._randomness_cfg)
        return super().train()

    def _take_batches_from(self, meta: dict) -> None:
        """Has the run see the samples that it would have seen on the processes that wrote a checkpoint."""
        total, group = meta.get('total_batch'), meta.get('group')
        loader = self._train_dataloader
        if not (total and group and isinstance(loader, dict)):
            return
        now = loader['batch_size'] * self.world_size
        if total == now:
            self._group = group
            return
        each, rest = divmod(total, self.world_size)
        advice = '' if rest else f'; for the same ones: --cfg-options train_dataloader.batch_size={each}'
        self.logger.warning(
            f'{self._load_from} is of a run that takes {total} samples in an iteration, and this one takes {now}: it '
            f'goes on with other samples{advice}'
        )

    def build_train_loop(self, loop):
        self._builds_training_data = True
        try:
            loop = super().build_train_loop(loop)
        finally:
            self._builds_training_data = False
        skipped = getattr(loop.dataloader.batch_sampler, 'skip', 0)
        if isinstance(loop, EpochBasedTrainLoop):
            done = done_of_epoch(self._iterations_done, self._epochs_done, len(loop.dataloader))
            if done:
                begin_inside_epoch(loop, done)
        elif skipped and not getattr(loop, 'fast_forward_on_resume', False):  # OneDL's loop draws no batches
            loop.dataloader_iterator = _AlreadySkipped(loop.dataloader_iterator, skipped)
        return loop

    def build_dataloader(self, dataloader, seed=None, diff_rank_seed=False):
        build = MMEngineRunner.build_dataloader
        if not isinstance(dataloader, dict):
            return build(dataloader, seed, diff_rank_seed)
        dataloader = deepcopy(dataloader)
        dataloader['dataset'] = dict(
            type=build_dataset, config=dataloader['dataset'], skip_bad_objects=self.cfg.get('skip_bad_objects')
        )
        if not self._builds_training_data:
            loader = build(dataloader, seed, diff_rank_seed)
            fetch_named(loader.dataset)
            return loader
        dataloader['sampler'] = dict(type=undivided, inner=dataloader['sampler'])
        dataloader['batch_sampler'] = dict(
            type=add_draws,
            seed=self.seed,
            skip=self._iterations_done,
            inner=dataloader.get('batch_sampler'),
            drop_last=dataloader.pop('drop_last', False),
            group=self._group,
            counts=accumulated(self.optim_wrapper),
        )
        loader = build(dataloader, seed, diff_rank_seed)
        if not len(loader):
            raise UserError(
                f'the training data has {len(loader.dataset)} samples for each batch of {dataloader["batch_size"]} '
                f'on {self.world_size} processes, and incomplete batches are dropped: there is no batch'
            )
        fetch_by_draw(loader.dataset, self.cfg.get('skip_bad_samples') or 0)
        return loader

    def load_checkpoint(self, *args, **kwargs):
        read_safely()
        return super().load_checkpoint(*args, **kwargs)

    def register_hook(self, hook, priority=None):
        """Registers a hook; mmengine's own checkpoint hook becomes ours, which removes nothing too early."""
        if isinstance(hook, dict) and hook.get('type') in ('CheckpointHook', MMEngineCheckpointHook):
            hook = {**hook, 'type': CheckpointHook}
        super().register_hook(hook, priority)

    def scale_lr(self, optim_wrapper, auto_scale_lr=None):
        """Scales the learning rate by the samples of a step of the optimizer; mmengine counts those of an iteration."""
        if auto_scale_lr and auto_scale_lr.get('enable'):
            base = auto_scale_lr['base_batch_size'] / accumulated(optim_wrapper)
            auto_scale_lr = {**auto_scale_lr, 'base_batch_size': base}
        super().scale_lr(optim_wrapper, auto_scale_lr)

    def save_checkpoint(self, out_dir, filename, *args, **kwargs):
        """Saves a checkpoint as mmengine does, but on a local disk the file appears whole or not at all."""
        if '://' in str(out_dir) or ':' in str(out_dir).split('/')[0]:
            return super().save_checkpoint(out_dir, filename, *args, **kwargs)
        path = Path(out_dir, filename)
        if not is_main_process():  # it writes nothing, and must not rename what the first process is writing
            return super().save_checkpoint(out_dir, filename, *args, **kwargs)
        try:
            with written_whole(path) as partial:
                super().save_checkpoint(out_dir, partial.name, *args, **kwargs)
        except (OSError, RuntimeError) as error:
            if not isinstance(error, OSError) and 'writ' not in str(error):
                raise
            reason = str(error).splitlines()[0]
            raise UserError(f'{path} could not be written: {reason}{_kept(out_dir)}') from error

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
