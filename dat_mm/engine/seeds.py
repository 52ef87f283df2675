# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Random numbers that follow from the seed and the place in the run, and from nothing that a killed run loses.

Each sample is augmented with streams seeded by (seed, rank, epoch, position), each iteration of the model runs with
streams seeded by (seed, rank, iteration). So a run that is resumed needs no stored generator, neither of the main
process nor of the workers, and the number of workers does not matter.
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

DATA, MODEL = 0, 1  # first word of a key, so that no stream serves two purposes


def _words(*key):
    return (int(word) for word in np.random.SeedSequence(key).generate_state(3, np.uint64))


def seed_all(*key: int) -> None:
    """Seeds the generators of Python, numpy and torch, those of the accelerators too."""
    first, second, third = _words(*key)
    random.seed(first)
    np.random.seed(second & 0xFFFFFFFF)
    torch.manual_seed(third)


@contextmanager
def seeded(*key: int):
    """Within it the generators of Python, numpy and torch on the CPU are seeded; after it they are as they were."""
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
    """A batch sampler whose indices say which draw they are: (index, key of its streams).

    The first `skip` batches are passed over without being loaded.
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
    """Makes a data set, whatever its class, serve the indices of `Draws`, through torch's protocol for batches."""
    dataset.__getitems__ = partial(_get_items, dataset)


def add_draws(sampler, batch_size: int, seed: int, skip: int = 0, inner=None, drop_last: bool = False):
    """`Draws` over the batch sampler `inner`, a config, or over plain batches.

    `skip` holds for mmengine's InfiniteSampler; others begin anew with each epoch.
    """
    if inner is None:
        batches = BatchSampler(sampler, batch_size, drop_last)
    else:
        batches = DATA_SAMPLERS.build(inner, default_args=dict(sampler=sampler, batch_size=batch_size))
    return Draws(batches, seed, skip if isinstance(sampler, InfiniteSampler) else 0)


class IterationSeed(Hook):
    """Seeds the generators before each iteration of training: drop path, mixup, the sampling of proposals."""

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        seed_all(MODEL, runner.seed, get_rank(), runner.iter)
