# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
import random
from itertools import chain, islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.dataset import sampler as mmengine_samplers
from mmengine.registry import DefaultScope
from torch.utils.data import BatchSampler, DataLoader, Dataset, SequentialSampler

from dat_mm.engine import drops, seeds
from dat_mm.engine.drops import DropBySample
from dat_mm.engine.fetching import fetch_by_draw
from dat_mm.engine.seeds import add_draws, seed_all, seeded, undivided
from dat_mm.models.layers import DropPath


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


class ByParity(BatchSampler):
    """Batches of even or of odd indices, as others are of wide or of high pictures."""

    def __iter__(self):
        waiting = [], []
        for index in self.sampler:
            batch = waiting[index % 2]
            batch.append(index)
            if len(batch) == self.batch_size:
                yield batch[:]
                batch.clear()
        rest = waiting[0] + waiting[1]
        yield from (rest[i : i + self.batch_size] for i in range(0, len(rest), self.batch_size))


def parts(monkeypatch, processes, batch_size, sampler, inner=None, size=10, **options):
    """What each of several processes draws, batch by batch."""
    dataset, found = range(size), []
    for rank in range(processes):
        for module in (seeds, mmengine_samplers):
            monkeypatch.setattr(module, 'get_dist_info', lambda group=None, rank=rank: (rank, processes))
        built = undivided(dataset, 3, dict(type=sampler, shuffle=True))
        draws = add_draws(built, batch_size, 3, inner=inner and dict(type=inner, drop_last=False), **options)
        found.append(list(islice(draws, 12)))
        if sampler is DefaultSampler:
            assert len(draws) == len(found[0])
    return [list(chain(*batch)) for batch in zip(*found, strict=True)]


@pytest.mark.parametrize('sampler', [DefaultSampler, InfiniteSampler])
@pytest.mark.parametrize('inner', [None, ByParity])
@pytest.mark.parametrize('size', [3, 8, 10, 11])
def test_the_number_of_processes_changes_nothing(monkeypatch, sampler, inner, size):
    expected = parts(monkeypatch, 1, 4, sampler, inner, size, group=2)
    assert len({index for batch in expected for index, _ in batch}) == size  # all of them
    assert all(len(batch) == 4 for batch in expected)
    keys = [key for batch in expected for _, key in batch]
    assert len(set(keys)) == len(keys)
    for processes, batch_size in ((2, 2), (4, 1)):
        assert parts(monkeypatch, processes, batch_size, sampler, inner, size, group=2) == expected


def test_a_sampler_of_a_toolbox_is_found_by_its_bare_name(monkeypatch):
    """As in a config, where the names of the default scope need no prefix; it is made undivided like any other."""
    pretrain = pytest.importorskip('mmpretrain.datasets.samplers.repeat_aug')
    monkeypatch.setattr(pretrain, 'get_dist_info', lambda group=None: (1, 2))
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        built = undivided(range(8), 3, dict(type='RepeatAugSampler'))
    assert (built.rank, built.world_size) == (0, 1)


def test_a_batch_that_is_not_full_is_dropped_or_filled_up(monkeypatch):
    filled = parts(monkeypatch, 2, 2, DefaultSampler)
    dropped = parts(monkeypatch, 2, 2, DefaultSampler, drop_last=True)
    assert len(filled) == 3 and dropped == filled[:2]
    assert [index for index, _ in filled[2][2:]] == [index for index, _ in filled[0][:2]]


def test_an_epoch_ends_with_a_whole_step_of_the_optimizer(monkeypatch):
    """Accumulated gradients and processes are then the same."""
    expected = list(chain(*parts(monkeypatch, 4, 1, DefaultSampler)))
    assert len(expected) == 12
    assert list(chain(*parts(monkeypatch, 1, 1, DefaultSampler, counts=4))) == expected
    assert list(chain(*parts(monkeypatch, 2, 1, DefaultSampler, counts=2))) == expected


def test_each_process_has_batches_of_its_kind(monkeypatch):
    for batch in parts(monkeypatch, 2, 2, DefaultSampler, ByParity, size=16):
        assert len({index % 2 for index, _ in batch[:2]}) == 1


def test_a_sampler_that_divides_by_itself_is_left_alone(monkeypatch):
    """Each process then has random numbers of its own."""

    class Divided(SequentialSampler):
        world_size = 2

    monkeypatch.setattr(seeds, 'get_dist_info', lambda: (1, 2))
    draws = add_draws(Divided(range(4)), 2, 3)
    assert [[index for index, _ in batch] for batch in draws] == [[0, 1], [2, 3]]
    assert next(iter(draws))[0][1] == (seeds.DATA, 3, 1, 0, 0)


@pytest.mark.parametrize('layer', [DropPath(0.5), torch.nn.Dropout2d(0.5)])
def test_what_is_dropped_does_not_depend_on_the_processes(layer, monkeypatch):
    model = torch.nn.Sequential(layer, torch.nn.ReLU())
    runner = SimpleNamespace(model=model, seed=3, iter=5)
    hook = DropBySample()
    hook.before_train(runner)
    x = torch.ones(32, 6, 2, 2)

    def dropped(processes):
        found = []
        for rank, part in enumerate(x.chunk(processes)):
            monkeypatch.setattr(drops, 'get_dist_info', lambda rank=rank: (rank, processes))
            found.append(model(part))
        return torch.cat(found)

    hook.before_train_iter(runner, 0)
    whole = dropped(1)
    assert set(whole.unique().tolist()) == {0.0, 2.0}
    assert torch.equal(dropped(2), whole) and torch.equal(dropped(4), whole)
    runner.iter = 6
    hook.before_train_iter(runner, 0)
    assert not torch.equal(dropped(1), whole)
    model.eval()
    assert torch.equal(model(x), x)
    hook.after_train(runner)
    assert 'forward' not in vars(layer)
