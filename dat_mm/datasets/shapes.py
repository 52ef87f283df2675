# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Shapes, a data set of synthetic scenes for detection, segmentation and classification, drawn on first use."""

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .classes import CLASSES
from .store import build_once, read_marker

VERSION = 1  # of the generator; raise it when a byte of the output changes
SPLITS = ('train', 'val')
CROP_SIZE = 96
MIN_CROP_SHOWN = 0.5  # part of an object that must be seen for a crop of it


def ensure_shapes(root='data/shapes', *, num_train=1400, num_val=250, size=160, difficulty=0.05, seed=0, workers=None):
    """Draw the data set in `root` unless it is there, and return `root`.

    A data set that was drawn with other arguments is an error. `size` is the longer side of a scene in pixels.
    `workers` is the number of threads, which changes the time but not the bytes.
    """
    recipe = {
        'kind': 'shapes',
        'version': VERSION,
        'num_train': num_train,
        'num_val': num_val,
        'size': size,
        'difficulty': difficulty,
        'seed': seed,
    }
    if min(num_train, num_val) < 1 or size < 64:
        raise ValueError(f'num_train={num_train}, num_val={num_val}, size={size} are below 1, 1, 64')

    def write(folder):
        from .scenes import Difficulty

        Difficulty.of(difficulty)
        for split, count in zip(SPLITS, (num_train, num_val), strict=True):
            _write_split(folder, split, count, size, difficulty, seed, workers)

    return build_once(root, recipe, write)


def ensure_panoptic(root):
    """Write the panoptic annotations of a data set that is there to `root`/panoptic, unless they are there."""
    root = Path(root)

    def write(folder):
        from .panoptic import write_panoptic

        stuff = [{'id': len(CLASSES) + 1, 'name': 'background', 'supercategory': 'background'}]
        for split in SPLITS:
            instances = json.loads((root / 'annotations' / f'instances_{split}.json').read_text())
            write_panoptic(instances, stuff, stuff[0]['id'], folder / f'{split}.json', folder / split)

    return build_once(root / 'panoptic', {'kind': 'shapes panoptic', 'version': VERSION}, write)


def map_scenes(function, count, workers=None):
    """The list [function(0), ..., function(count - 1)], computed on threads: OpenCV and NumPy release the GIL."""
    workers = workers or min(8, len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 4)
    if workers == 1:
        return [function(index) for index in range(count)]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, range(count)))


def scene_of(index, split, seed, size, difficulty):
    """Draw the scene that these arguments stand for, always the same one."""
    import numpy as np

    from .scenes import draw_scene

    rng = np.random.RandomState([seed, SPLITS.index(split), index])  # NumPy promises that its numbers never change
    height, width = ((1, 1), (0.8, 1), (1, 0.8))[rng.randint(3)]
    return draw_scene(rng, int(height * size), int(width * size), difficulty)


def write_image(path, image, quality=95):
    """Write an image as PNG or JPEG, as the suffix says. A failure raises OSError."""
    import cv2

    options = [cv2.IMWRITE_PNG_COMPRESSION, 6] if path.suffix == '.png' else [cv2.IMWRITE_JPEG_QUALITY, quality]
    path.write_bytes(cv2.imencode('.png' if path.suffix == '.png' else '.jpg', image, options)[1].tobytes())


def _write_split(folder, split, count, size, difficulty, seed, workers):
    """Draw the scenes of a split and write all that belongs to them."""
    from .annotate import annotate, coco_file, crop_object, image_record, label_map

    images, masks, crops = folder / 'images' / split, folder / 'masks' / split, folder / 'imagenet' / split
    for path in (images, masks, *(crops / name for name in CLASSES)):
        path.mkdir(parents=True)

    def one(index):
        scene = scene_of(index, split, seed, size, difficulty)
        stem = f'{index + 1:06d}'
        write_image(images / f'{stem}.jpg', scene.image)
        write_image(masks / f'{stem}.png', label_map(scene, range(2, len(CLASSES) + 2), background=1))
        for k, label in enumerate(scene.labels):
            if not scene.crowd[k] and scene.shown[k] >= MIN_CROP_SHOWN:
                write_image(crops / CLASSES[label] / f'{stem}_{k}.jpg', crop_object(scene, k, CROP_SIZE))
        record = image_record(index + 1, f'{stem}.jpg', scene)
        return record, annotate(scene, index + 1, range(1, len(CLASSES) + 1))

    results = map_scenes(one, count, workers)
    records = [record for _, found in results for record in found]
    categories = [{'id': k, 'name': name, 'supercategory': 'shape'} for k, name in enumerate(CLASSES, start=1)]
    content = coco_file([image for image, _ in results], records, categories, f'Shapes, {split}')
    path = folder / 'annotations' / f'instances_{split}.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, separators=(',', ':')))


def main(argv=None):
    """Draw the data set that the command line asks for, and return its root."""
    parser = argparse.ArgumentParser(prog='python -m dat_mm.datasets.shapes', description=__doc__)
    parser.add_argument('--root', default='data/shapes')
    parser.add_argument('--num-train', type=int, default=1400)
    parser.add_argument('--num-val', type=int, default=250)
    parser.add_argument('--size', type=int, default=160, help='longer side of a scene in pixels')
    parser.add_argument('--difficulty', type=float, default=0.05, help='0 (easy) to 1 (hard)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--workers', type=int, help='threads; the bytes are the same for any number')
    options = vars(parser.parse_args(argv))
    start = time.time()
    try:
        there = read_marker(options['root']) is not None
        root = ensure_shapes(**options)
    except (FileExistsError, ValueError) as error:
        parser.exit(1, f'{error}\n')
    print(f'{root}: already there' if there else f'{root}: made in {time.time() - start:.1f} s')
    return Path(root)


if __name__ == '__main__':
    main()
