# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What several tests share: golden numbers of the published code, and configs that train in seconds.

The golden numbers are in tests/data/golden. Their weights follow from a formula, so no file has them. The configs are
in tests/data/tiny, and their data is made here.
"""

import importlib.util
import json
import os
import zlib
from pathlib import Path

import interpreter
import numpy as np
import pytest
import torch

os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # so that products on a GPU repeat to the bit
torch.backends.cudnn.allow_tf32 = False
if not torch.cuda.is_available():
    os.environ['TRITON_INTERPRET'] = '1'  # set before triton is imported, so that its kernels run in Python
    if importlib.util.find_spec('triton'):
        interpreter.patch()

GOLDEN = Path(__file__).parent / 'data' / 'golden'
TINY = Path(__file__).parent / 'data' / 'tiny'


def pytest_addoption(parser):
    parser.addoption('--all-configs', action='store_true', help='run every real config of tiny size end to end')


def pytest_runtest_logreport(report):
    """Tells of a failure at once, for a run that is cut off has no summary."""
    if report.failed:
        print(f'\nFAILED {report.nodeid} ({report.when}, {report.duration:.0f} s)', flush=True)


LONGEST = ('test_slurm.py', 'test_files.py', 'test_reproduce.py', 'test_end_to_end.py')


def pytest_collection_modifyitems(items):
    """Begins with the files that take longest, so that no process is left alone with one of them at the end."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


class Golden:
    """One golden case, with its arrays, the official keys with their shapes, and weights for them."""

    def __init__(self, name):
        self.arrays = np.load(GOLDEN / f'{name}.npz')
        if 'block' in name:
            self.info = json.loads((GOLDEN / f'{name}.json').read_text())
            self.shapes, self.prefix = self.info['keys'], self.info['prefix']
        else:
            self.shapes, self.prefix = json.loads((GOLDEN / f'{name}.keys.json').read_text()), ''

    def __getitem__(self, key):
        return self.arrays[key]

    def __contains__(self, key):
        return key in self.arrays

    def normal(self, seed, shape):
        return torch.from_numpy(np.random.RandomState(seed).standard_normal(size=shape).astype(np.float32))

    def weight(self, key):
        """The weight of a key, by the formula that the golden files were made with."""
        shape = self.shapes[key]
        key = self.prefix + key
        if key.endswith(('relative_position_index', 'attn_mask')):
            return torch.zeros(shape)
        r = self.normal(zlib.crc32(key.encode()), shape)
        if key.endswith('norm.weight'):
            return 1 + 0.1 * r
        if key.endswith('.bias'):
            return 0.02 * r
        if key.endswith(('rpe_table', 'relative_position_bias_table', 'rpb')):
            return 0.5 * r
        r = r / float(np.sqrt(np.prod(shape[1:]) or 1))
        return r / 2 if key.endswith('conv_offset.3.weight') else r

    def state_dict(self):
        return {key: self.weight(key) for key in self.shapes}

    def input(self):
        if 'x_shape' in self:
            return self.normal(int(self['seed']), tuple(self['x_shape']))
        size = (int(self[key]) for key in ('batch', 'height', 'width'))
        batch, height, width = size
        return self.normal(int(self['seed']), (batch, 3, height, width))

    def error(self, key, tensor):
        """The largest difference to the golden sample, relative to the largest value of the sample."""
        golden = self[f'{key}_sample'] if f'{key}_sample' in self else self[key].ravel()
        ours = tensor.detach().flatten()
        ours = ours[:: max(1, ours.numel() // 2048)] if f'{key}_sample' in self else ours
        return float(np.abs(ours.cpu().numpy() - golden).max() / np.abs(golden).max())


@pytest.fixture(scope='session')
def golden():
    return Golden


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def _write_data(root: Path, count: int = 6) -> None:
    """Writes pictures with a dark or a light square, in folders by class, with boxes and with masks."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for folder in ('images', 'masks', 'folders/dark', 'folders/light'):
        (root / folder).mkdir(parents=True)
    images, annotations = [], []
    for i in range(count):
        height, width = (72, 96) if i % 2 else (96, 72)
        picture = rng.integers(80, 170, (height, width, 3), np.uint8)
        light, x, y = i % 2, *(int(v) for v in rng.integers(4, 30, 2))
        picture[y : y + 32, x : x + 32] = 230 if light else 20
        mask = np.full((height, width), 255, np.uint8)
        mask[y : y + 32, x : x + 32] = light
        mask[:4] = 1 - light
        Image.fromarray(picture).save(root / f'images/{i}.png')
        Image.fromarray(picture).save(root / f'folders/{("dark", "light")[light]}/{i}.png')
        Image.fromarray(mask).save(root / f'masks/{i}.png')
        images.append(dict(id=i, file_name=f'{i}.png', height=height, width=width))
        annotations.append(dict(id=i + 1, image_id=i, category_id=light, bbox=[x, y, 32, 32], area=1024, iscrowd=0))
    categories = [dict(id=0, name='dark'), dict(id=1, name='light')]
    (root / 'boxes.json').write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))


@pytest.fixture(scope='session')
def tiny_data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    _write_data(root)
    return root


@pytest.fixture
def tiny_config(tiny_data, tmp_path):
    """Writes tmp_path/{mmpretrain,mmdet,mmseg}.py and returns its path."""

    def write(scope):
        path = tmp_path / f'{scope}.py'
        path.write_text((TINY / f'{scope}.py').read_text().replace('TINY_DATA', str(tiny_data)))
        return path

    return write
