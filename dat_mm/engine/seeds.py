# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Random numbers that follow from the seed and the place in the run alone, so that a killed run loses nothing.

Each sample is augmented with generators seeded by (seed, rank, epoch, position). Each iteration of the model runs with
generators seeded by (seed, rank, iteration). A resumed run therefore needs no stored state of a generator, neither of
the main process nor of the workers. The number of workers does not matter.
"""

import random
from contextlib import contextmanager
from functools import partial
from itertools import islice

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import BatchSampler, Sampler

DATA, MODEL = 0, 1  # the first word of a key, so that data and model never share random numbers


def _words(*key):
    return (int(word) for word in np.random.SeedSequence(key).generate_state(3, np.uint64))


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

    The first `skip` batches are left out and never loaded.
    """

    def __init__(self, batch_sampler, seed: int, skip: int = 0):
        self.batch_sampler, self.seed, self.skip = batch_sampler, seed, skip

    @property
    def sampler(self):
        return self.batch_sampler.sampler

    @property
    def batch_size(self):
        return self.batch_sampler.batch_size

    def __len__(self):
        return len(self.batch_sampler)

    def __iter__(self):
        key = DATA, self.seed, get_rank(), getattr(self.sampler, 'epoch', 0)
        for n, batch in islice(enumerate(self.batch_sampler), self.skip, None):
            yield [(index, (*key, n, i)) for i, index in enumerate(batch)]


def _get_items(dataset, draws):
    items = []
    for index, key in draws:
        with seeded(*key):
            items.append(dataset[index])
    return items


def fetch_by_draw(dataset) -> None:
    """Makes a data set of any class take the (index, key) pairs of `Draws`, through torch's __getitems__."""
    dataset.__getitems__ = partial(_get_items, dataset)


def add_draws(sampler, batch_size: int, seed: int, skip: int = 0, inner=None, drop_last: bool = False):
    """Builds `Draws` over the batch sampler of the config `inner`, or over plain batches without one.

    `skip` counts for mmengine's InfiniteSampler only. Other samplers begin anew with each epoch.
    """
    if inner is None:
        batches = BatchSampler(sampler, batch_size, drop_last)
    else:
        batches = DATA_SAMPLERS.build(inner, default_args=dict(sampler=sampler, batch_size=batch_size))
    return Draws(batches, seed, skip if isinstance(sampler, InfiniteSampler) else 0)


class IterationSeed(Hook):
    """Seeds the generators before each training iteration, for drop path, mixup and the sampling of proposals."""

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        seed_all(MODEL, runner.seed, get_rank(), runner.iter)
