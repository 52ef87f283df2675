# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Bad samples are named in one line, and left out up to a limit."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip('mmengine')

from run_logs import log_text
from torch.utils.data import DataLoader, Dataset

from dat_mm.engine.fetching import BadSample, fetch_by_draw, name_bad_samples

ROOT = Path(__file__).parents[2]


class Files(Dataset):
    """Numbers, some of which are damaged, and one that is a mistake in a program."""

    bad = (2, 3, 7)

    def __len__(self):
        return 10

    def get_data_info(self, index):
        return dict(img_path=f'{index}.jpg')

    def __getitem__(self, index):
        if index in self.bad:
            raise OSError(f'cannot decode\nimage {index}')
        if index == 9:
            raise TypeError('a mistake')
        return index, float(torch.rand(()))


def draw(dataset, indices, workers=0):
    sampler = [[(index, (0, 0, index)) for index in indices]]
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=list)
    return next(iter(loader))


@pytest.mark.parametrize('workers', [0, 1])
def test_a_bad_sample_is_one_line(workers):
    dataset = Files()
    fetch_by_draw(dataset)
    with pytest.raises(BadSample, match=r'^2\.jpg: image 2$') as error:
        draw(dataset, [0, 2], workers)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('workers', [0, 1])
def test_the_next_good_one_takes_its_place_with_its_random_numbers(workers):
    dataset, whole = Files(), Files()
    fetch_by_draw(dataset, limit=3)
    whole.bad = ()
    fetch_by_draw(whole)
    found = draw(dataset, [0, 2, 3, 7], workers)
    assert [index for index, _ in found] == [0, 4, 4, 8]
    assert [number for _, number in found] == [number for _, number in draw(whole, [0, 2, 3, 7])]


def test_more_than_the_limit_end_the_run_and_each_counts_once():
    dataset = Files()
    fetch_by_draw(dataset, limit=2)
    draw(dataset, [2, 2, 3])
    with pytest.raises(BadSample, match=r'7\.jpg: image 7: 3 bad samples, and skip_bad_samples is 2'):
        draw(dataset, [7])


def test_workers_count_together():
    dataset = Files()
    fetch_by_draw(dataset, limit=2)
    sampler = [[(index, (0, index))] for index in (2, 3, 7, 0, 1)]
    with pytest.raises(BadSample, match='3 bad samples'):
        list(DataLoader(dataset, batch_sampler=sampler, num_workers=2, collate_fn=list))


def test_mistakes_of_programs_keep_their_traceback():
    dataset = Files()
    fetch_by_draw(dataset, limit=5)
    with pytest.raises(TypeError, match='a mistake'):
        draw(dataset, [9])


def test_validation_leaves_nothing_out():
    dataset = Files()
    name_bad_samples(dataset)
    with pytest.raises(BadSample, match=r'2\.jpg: image 2'):
        list(DataLoader(dataset, batch_size=2, collate_fn=list))


@pytest.fixture
def damaged(tiny_config, tiny_data, tmp_path):
    """A config whose data is a copy, one file of which is damaged, and that file."""

    def make(scope, damage):
        root = tmp_path / 'data'
        shutil.copytree(tiny_data, root)
        config = tiny_config(scope)
        config.write_text(config.read_text().replace(str(tiny_data), str(root)))
        file = root / {'mmpretrain': 'folders/dark/0.png', 'mmdet': 'images/0.png', 'mmseg': 'images/0.png'}[scope]
        if damage == 'cut':
            file.write_bytes(file.read_bytes()[:200])
        elif damage == 'gone':
            file.unlink()
        else:  # another size
            from PIL import Image

            Image.new('L', (50, 50)).save(root / 'masks/0.png')
        return config, file

    return make


def train(config, work_dir, *options):
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))
    command = [
        sys.executable,
        ROOT / 'tools/train.py',
        config,
        '--work-dir',
        work_dir,
        '--no-validate',
        '--cfg-options',
    ]
    environment = {**os.environ, 'PYTHONPATH': path, 'OMP_NUM_THREADS': '1'}
    return subprocess.run([*map(str, command), *options], env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ('scope', 'damage', 'workers'),
    [('mmpretrain', 'cut', 0), ('mmdet', 'gone', 2), ('mmseg', 'size', 2), ('mmseg', 'cut', 0)],
)
def test_a_training_names_a_bad_file_or_goes_on_without_it(scope, damage, workers, damaged, tmp_path):
    config, file = damaged(scope, damage)
    options = [f'train_dataloader.num_workers={workers}']
    done = train(config, tmp_path / 'stops', *options)
    assert done.returncode == 1
    assert re.match(f'error: {file}: .', done.stderr.strip().splitlines()[-1]), done.stderr[-2000:]
    assert 'Traceback' not in done.stderr
    done = train(config, tmp_path / 'goes-on', *options, 'skip_bad_samples=1')
    assert done.returncode == 0, done.stderr[-2000:]
    assert f'bad sample 1 of at most 1: {file}: ' in log_text(tmp_path / 'goes-on') + done.stdout + done.stderr
