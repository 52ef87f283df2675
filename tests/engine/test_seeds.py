# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
import random

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from torch.utils.data import DataLoader, Dataset

from dat_mm.engine.seeds import add_draws, fetch_by_draw, seed_all, seeded


def numbers():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


class Noise(Dataset):
    """Items that are their index and a number of each of the three generators."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return (index, *numbers())


def batches(sampler=InfiniteSampler, seed=3, count=8, skip=0, workers=0, epoch=0):
    dataset = Noise()
    sampler = sampler(dataset, shuffle=True, seed=seed)
    if epoch:
        sampler.set_epoch(epoch)
    fetch_by_draw(dataset)
    draws = add_draws(sampler, batch_size=2, seed=seed, skip=skip)
    loader = DataLoader(dataset, batch_sampler=draws, num_workers=workers, collate_fn=tuple)
    return [batch for batch, _ in zip(loader, range(count), strict=False)]


def test_streams_follow_from_their_key():
    seed_all(0, 1)
    first = numbers()
    assert numbers() != first
    seed_all(0, 1)
    assert numbers() == first
    seed_all(0, 2)
    assert numbers() != first


def test_a_seeded_block_leaves_the_generators_as_they_were():
    seed_all(5)
    expected = numbers()
    seed_all(5)
    with seeded(1, 2):
        numbers()
    assert numbers() == expected


@pytest.mark.parametrize('workers', [0, 2])
def test_skipped_batches_leave_the_rest_unchanged(workers):
    whole = batches(count=12)  # more than an epoch
    assert whole[0] != whole[5]
    assert len({item[1] for batch in whole for item in batch}) == 24
    assert batches(count=7, skip=5, workers=workers) == whole[5:]


@pytest.mark.parametrize('workers', [0, 3])
def test_samples_do_not_depend_on_the_state_or_the_workers(workers):
    seed_all(random.randrange(1000))
    expected = batches(DefaultSampler, epoch=2)
    seed_all(1001)
    assert batches(DefaultSampler, epoch=2, workers=workers) == expected
    assert batches(DefaultSampler, epoch=1, workers=workers) != expected
    assert batches(DefaultSampler, epoch=2, seed=4) != expected


def test_an_epoch_is_not_skipped_into():
    assert len(batches(DefaultSampler, skip=3)) == 5
