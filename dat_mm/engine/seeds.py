# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Random numbers that follow from the seed and the place in the run alone, so that a killed run loses nothing.

Each sample is augmented with generators seeded by (seed, epoch, place in the epoch). Each iteration of the model runs
with generators seeded by (seed, rank, iteration). A resumed run therefore needs no stored state of a generator, neither
of the main process nor of the workers. Neither the number of workers nor that of processes matters to the samples.
"""

import random
import sys
from contextlib import ExitStack, contextmanager
from itertools import cycle, islice
from unittest import mock

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_dist_info, get_rank
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler, Sampler

DATA, MODEL = 0, 1  # the first word of a key, so that data and model never share random numbers


def _words(*key):
    return (int(word) for word in np.random.SeedSequence(key).generate_state(3, np.uint64))


def word(*key: int) -> int:
    """A seed for one generator, of 63 bits."""
    return next(_words(*key)) >> 1


def seed_all(*key: int) -> None:
    """Seeds the generators of Python, numpy and torch, on all devices."""
    first, second, third = _words(*key)
    random.seed(first)
    np.random.seed(second & 0xFFFFFFFF)
    torch.manual_seed(third)


@contextmanager
def seeded(*key: int):
    """A context that seeds the CPU generators of Python, numpy and torch, and restores them afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    first, second, third = _words(*key)
    random.seed(first)
    np.random.seed(second & 0xFFFFFFFF)
    torch.default_generator.manual_seed(third)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class Draws(Sampler):
    """A batch sampler that gives each index with the key of its random numbers: (index, key).

    All processes go through the same batches of the whole run, each of `total` samples, and each takes its part. What
    the run sees then does not depend on the number of processes, as long as the total is the same.

    Args:
        groups: the batch sampler that the whole is put together from, such as one that groups by aspect ratio. It must
            be the same in all processes.
        total: samples that all processes take in an iteration.
        part: the slice of them that this process takes.
        key: the beginning of each key.
        skip: batches at the beginning that are left out and never loaded.
        drop_last: whether what is left for a last step of fewer samples is left out. Otherwise the first samples of
            the epoch fill it up.
        counts: batches in a step of the optimizer.
    """

    def __init__(
        self, groups, total: int, part: slice, key: tuple, *, skip: int = 0, drop_last: bool = False, counts: int = 1
    ):
        self.groups, self.total, self.part, self.key = groups, total, part, key
        self.skip, self.drop_last, self.counts = skip, drop_last, counts

    @property
    def sampler(self):
        return self.groups.sampler

    @property
    def batch_size(self):
        return self.part.stop - self.part.start

    def __len__(self):
        whole, rest = divmod(len(self.sampler), self.total * self.counts)
        return (whole + bool(rest and not self.drop_last)) * self.counts

    def _batches(self):
        """Yields the batches of all processes."""
        step = self.total * self.counts
        first, samples = [], []
        for group in self.groups:
            if len(first) < step:
                first += group
            samples += group
            while len(samples) >= step:
                yield from self._divided(samples[:step])
                samples = samples[step:]
        if samples and not self.drop_last:
            yield from self._divided(list(islice(cycle(samples + first), step)))

    def _divided(self, samples):
        return (samples[i : i + self.total] for i in range(0, len(samples), self.total))

    def __iter__(self):
        epoch = getattr(self.sampler, 'epoch', 0)
        for n, batch in islice(enumerate(self._batches()), self.skip, None):
            draws = [(index, (*self.key, epoch, n * self.total + i)) for i, index in enumerate(batch)]
            yield draws[self.part]


def undivided(dataset, seed: int, inner: dict):
    """Builds the sampler of the config `inner` so that it gives every process the samples of all."""
    with ExitStack() as alone, DATA_SAMPLERS.switch_scope_and_registry(None) as registry:  # that of the default scope
        kind = registry.get(inner['type']) if isinstance(inner['type'], str) else inner['type']
        for module in {sys.modules[parent.__module__] for parent in getattr(kind, '__mro__', ())}:
            if hasattr(module, 'get_dist_info'):  # what the samplers of OpenMMLab divide by
                alone.enter_context(mock.patch.object(module, 'get_dist_info', lambda group=None: (0, 1)))
        return DATA_SAMPLERS.build(inner, default_args=dict(dataset=dataset, seed=seed))


def add_draws(sampler, batch_size, seed, *, skip=0, inner=None, drop_last=False, group=None, counts=1):
    """Builds `Draws` over the batch sampler of the config `inner`, or over plain batches without one.

    `skip` counts for mmengine's InfiniteSampler only. Other samplers begin anew with each epoch. `group` is the batch
    size of `inner`, and this process's own by default. A sampler that divides the data itself is left to do so.
    """
    rank, processes = get_dist_info()
    key = DATA, seed
    if getattr(sampler, 'world_size', processes) != 1:
        key, rank, processes = (DATA, seed, rank), 0, 1
    if inner is None:
        groups = BatchSampler(sampler, group or batch_size, drop_last=False)
    else:
        groups = DATA_SAMPLERS.build(inner, default_args=dict(sampler=sampler, batch_size=group or batch_size))
        drop_last = drop_last or getattr(groups, 'drop_last', False)
    return Draws(
        groups,
        batch_size * processes,
        slice(batch_size * rank, batch_size * (rank + 1)),
        key,
        skip=skip if isinstance(sampler, InfiniteSampler) else 0,
        drop_last=drop_last,
        counts=counts,
    )


class IterationSeed(Hook):
    """Seeds the generators before each training iteration, for dropout, mixup and the sampling of proposals."""

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        seed_all(MODEL, runner.seed, get_rank(), runner.iter)

    def before_save_checkpoint(self, runner, checkpoint) -> None:
        batches = getattr(runner.train_loop.dataloader, 'batch_sampler', None)
        if isinstance(batches, Draws):  # what a place in the run is counted in
            checkpoint['meta'].update(total_batch=batches.total, group=batches.groups.batch_size)
