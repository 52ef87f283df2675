# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Annotation files that were changed at random: they are checked without an error, and used or refused in one line."""

import json
import random
from pathlib import Path

import pytest

pytest.importorskip('mmdet')

from dat_mm.datasets import write_mini_coco
from dat_mm.datasets.faults import coco_faults
from dat_mm.engine.fetching import OF_DATA, BadSample, Fetching

FILES = 500
VALUES = ('NaN', 'Infinity', '-1', '1e400', '0', 'null', '[]', '{}', '"x"', 'true', '123456789012345678901234567890')


def changed(text: str, rng: random.Random) -> str:
    """One of many changes of a JSON file: characters, cuts, values and keys of other kinds."""
    kind = rng.randrange(5)
    if kind == 0:
        at = rng.randrange(len(text))
        return text[:at] + chr(rng.randrange(32, 1000)) + text[at + 1 :]
    if kind == 1:
        return text[: rng.randrange(len(text))]
    if kind == 2:
        return text.replace(
            rng.choice(('"bbox"', '"id"', '"image_id"', '"segmentation"', '"area"', '"name"')), '"y"', 1
        )
    content = json.loads(text)
    part = content[rng.choice(('images', 'annotations', 'categories'))]
    entry = rng.choice(part)
    key = rng.choice(sorted(entry))
    if kind == 3:
        entry[key] = 'REPLACED'
        return json.dumps(content).replace('"REPLACED"', rng.choice(VALUES))
    if isinstance(entry[key], list) and entry[key]:
        entry[key][rng.randrange(len(entry[key]))] = 'REPLACED'
        return json.dumps(content).replace('"REPLACED"', rng.choice(VALUES))
    part.append(rng.choice(part) if rng.random() < 0.5 else rng.choice((3, None, [], 'x')))
    return json.dumps(content)


@pytest.mark.slow
def test_changed_annotations_are_checked_and_used_or_refused(tmp_path, seen):
    from mmdet.datasets import CocoDataset
    from mmdet.utils import register_all_modules

    register_all_modules()
    root = Path(write_mini_coco(tmp_path / 'coco', num_train=2, num_val=1, size=64))
    text = (root / 'annotations/instances_train2017.json').read_text()
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        dict(type='Resize', scale=(64, 64), keep_ratio=True),
        dict(type='PackDetInputs'),
    ]
    file, refused, with_faults = tmp_path / 'changed.json', 0, 0
    for seed in range(FILES):
        file.write_text(changed(text, random.Random(seed)))
        found = list(coco_faults(file, CocoDataset.METAINFO['classes']))
        assert all('\n' not in str(fault) for fault in found)
        with_faults += bool(found)
        try:
            dataset = CocoDataset(
                ann_file=str(file), data_prefix=dict(img=str(root / 'train2017')), pipeline=pipeline,
                filter_cfg=dict(filter_empty_gt=True, min_size=1),
            )  # fmt: skip
        except Exception:  # the toolbox's: what is wrong with the whole file is told by the check
            assert found, seed
            continue
        fetching = Fetching(dataset)
        for index in range(len(dataset)):
            try:
                fetching([(index, (0, index))])
            except BadSample as error:
                refused += 1
                assert '\n' not in str(error)
            except OF_DATA as error:
                pytest.fail(f'seed {seed}: {error!r}')
    assert with_faults > FILES / 2 and refused
    seen(f'{FILES} annotation files changed at random', f'{with_faults} reported; no error without a line')
