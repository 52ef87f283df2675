# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Mutated annotation files: the checks find faults or none, and training works or ends with one line."""

import json
import os
import random

import pytest

pytest.importorskip('mmdet')

from mmengine.registry import DefaultScope
from reliability.conftest import long_version

from dat_mm.datasets import write_mini_coco
from dat_mm.datasets.faults import coco_faults, image_faults
from dat_mm.engine.fetching import build_dataset, fetch_by_draw
from dat_mm.errors import UserError

pytestmark = pytest.mark.one_stack

COUNT = 500 if long_version() else 60
VALUES = (
    *(None, True, '', 'x', '\ud800', 'a\0b', [], [[]], {}, {'a': []}, [None], [1, [2, [3]]]),
    *(0, -1, 1e308, -1e308, 1e-320, 10**12, 10**400, float('nan'), float('inf'), -float('inf'), 0.5),
)
PIPELINE = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]


def flip_bytes(rng, text):
    content = bytearray(text.encode())
    for _ in range(rng.choice((1, 3, 30))):
        content[rng.randrange(len(content))] = rng.randrange(256)
    return bytes(content)


def cut_off(rng, text):
    return text[: rng.randrange(len(text))].encode()


def repeat_part(rng, text):
    first, last = sorted(rng.randrange(len(text)) for _ in range(2))
    return (text[:last] + text[first : min(last, first + 200)] + text[last:]).encode()


def nest(rng, text):
    depth = rng.choice((50, 100_000))
    return text.replace('[', '[' * depth, 1).replace(']', ']' * depth, 1).encode()


def places(node, found):
    """Lists (container, key) of every value inside a file."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, value in pairs:
        found.append((node, key))
        places(value, found)
    return found


def change_values(rng, text):
    """Deletes values, or puts others in their place. Each part of the file is as likely as the others."""
    content = json.loads(text)
    for _ in range(rng.choice((1, 1, 2, 5))):
        part = rng.choice((content, *(content.get(key) for key in ('images', 'annotations', 'categories'))))
        if not isinstance(part, dict | list) or not part:
            continue
        record = rng.choice(part) if isinstance(part, list) else part
        among = [(part, key) for key in part] if isinstance(part, dict) else places(record, [])
        if not among:
            continue
        node, key = rng.choice(among)
        if rng.random() < 0.3:
            del node[key]
        else:
            node[key] = rng.choice((*VALUES, node[key]))
    return json.dumps(content).encode()


MUTATIONS = (flip_bytes, cut_off, repeat_part, nest, change_values, change_values, change_values, change_values)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = write_mini_coco(tmp_path_factory.mktemp('fuzz') / 'coco', num_train=2, num_val=1, size=64)
    file = root / 'annotations/instances_train2017.json'
    content = json.loads(file.read_text())
    del content['info'], content['licenses']
    return root, file, json.dumps(content)


def read_as_training_does(root):
    """Builds the data set of a config and reads every sample, through torch's interface."""
    config = dict(
        type='CocoDataset',
        data_root=f'{root}/',
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=PIPELINE,
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = build_dataset(config)
    fetch_by_draw(dataset)
    return dataset.__getitems__([(place, (0, 0, place)) for place in range(len(dataset))])


def ends_as_it_should(root, file):
    """Whether the samples could be read, after the checks came to an end. What stops it is told in one line."""
    images = []
    faults = list(coco_faults(file, None, images, masks=True))
    for name, size in images:
        faults += image_faults(os.path.join(root, 'train2017', name), size)
    assert all(str(fault).isprintable() for fault in faults)
    try:
        read_as_training_does(root)
    except UserError as error:
        assert str(error) and '\n' not in str(error)
        return False
    return True


def test_the_clean_file_is_read(data):
    root, file, text = data
    file.write_text(text)
    assert list(coco_faults(file, None, [])) == []
    assert len(read_as_training_does(root)) == 2


def test_mutated_files(data, seen):
    root, file, text = data
    ends = []
    for seed in range(COUNT):
        rng = random.Random(seed)
        file.write_bytes(rng.choice(MUTATIONS)(rng, text))
        print(f'seed {seed}')  # the last one is the one that failed
        ends.append(ends_as_it_should(root, file))
    stopped = ends.count(False)
    assert COUNT / 10 < stopped < COUNT  # the mutations do harm, and not always
    seen(f'{COUNT} annotation files changed at random', f'{stopped} ended the run in one line, the others were read')
