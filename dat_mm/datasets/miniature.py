# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""A few synthetic scenes in the layout of COCO 2017, ADE20K or ImageNet, on which the real configs run."""

import argparse
import json

from .classes import CLASSES
from .shapes import SPLITS, VERSION, scene_of, write_image
from .store import build_once

# COCO gives its 80 categories numbers from 1 to 90; these are not used.
COCO_UNUSED_IDS = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83})
# COCO gives its 53 categories of stuff numbers from 92 to 200; these are used. The background of a scene is sky.
COCO_STUFF_IDS = (
    *(92, 93, 95, 100, 107, 109, 112, 118, 119, 122, 125, 128, 130, 133, 138, 141, 144, 145, 147, 148, 149, 151, 154),
    *(155, 156, 159, 161, 166, 168, 171, 175, 176, 177, 178, 180, 181, *range(184, 201)),
)
SKY = 187
# Ten of ImageNet's 1000 classes: the folder, and its place in the sorted list.
WNIDS = {
    'n01440764': 0,
    'n01443537': 1,
    'n01484850': 2,
    'n01491361': 3,
    'n01494475': 4,
    'n01496331': 5,
    'n01498041': 6,
    'n01514668': 7,
    'n01514859': 8,
    'n15075141': 999,
}


def _scenes(num_train, num_val, seed, size):
    """Yields each split with its scenes. `size` is the longer side of a scene."""
    for split, count in zip(SPLITS, (num_train, num_val), strict=True):
        yield split, (scene_of(index, split, seed, size, difficulty=0.3) for index in range(count))


def _build(root, kind, num_train, num_val, size, seed, write):
    """Fill `root` by `write(folder)` unless it is there, and return it."""
    recipe = {'num_train': num_train, 'num_val': num_val, 'size': size, 'seed': seed}
    return build_once(root, {'kind': f'mini {kind}', 'version': VERSION, **recipe}, write)


def coco_categories():
    """COCO's 80 categories with their ids, named as mmdet names them."""
    from mmdet.datasets import CocoDataset

    names = CocoDataset.METAINFO['classes']
    ids = [number for number in range(1, 91) if number not in COCO_UNUSED_IDS]
    return [{'id': k, 'name': name, 'supercategory': 'thing'} for k, name in zip(ids, names, strict=True)]


def coco_stuff():
    """COCO's 53 categories of stuff with their ids, named as mmdet names them."""
    from mmdet.datasets import CocoPanopticDataset

    names = CocoPanopticDataset.METAINFO['stuff_classes']
    pairs = zip(COCO_STUFF_IDS, names, strict=True)
    return [{'id': k, 'name': name, 'supercategory': 'stuff'} for k, name in pairs]


def write_mini_coco(root, *, num_train=8, num_val=4, size=128, seed=0):
    """Write a miniature of COCO 2017 and return its root.

    It has `train2017/`, `val2017/`, `annotations/{instances,panoptic}_{train,val}2017.json` and the maps of the latter
    in `annotations/panoptic_{train,val}2017/`.
    """
    categories = coco_categories()
    category_ids = [categories[11 * k]['id'] for k in range(len(CLASSES))]

    def write(folder):
        from .annotate import annotate, coco_file, image_record
        from .panoptic import write_panoptic

        annotations = folder / 'annotations'
        annotations.mkdir()
        for split, scenes in _scenes(num_train, num_val, seed, size):
            (folder / f'{split}2017').mkdir()
            images, records = [], []
            for index, scene in enumerate(scenes):
                # as in COCO, numbers have gaps; 139 is the first of val2017
                number = 139 + 146 * index + (9 if split == 'train' else 0)
                name = f'{number:012d}.jpg'
                write_image(folder / f'{split}2017' / name, scene.image)
                images.append(image_record(number, name, scene))
                records += annotate(scene, number, category_ids)
            content = coco_file(images, records, categories, f'Miniature of COCO 2017, {split}')
            (annotations / f'instances_{split}2017.json').write_text(json.dumps(content))
            panoptic = f'panoptic_{split}2017'
            write_panoptic(content, coco_stuff(), SKY, annotations / f'{panoptic}.json', annotations / panoptic)

    return _build(root, 'coco with panoptic', num_train, num_val, size, seed, write)


def write_mini_ade20k(root, *, num_train=8, num_val=4, size=128, seed=0):
    """Write a miniature of ADE20K and return its root.

    It has `ADEChallengeData2016/{images,annotations}/{training,validation}/ADE_*`.
    """
    values = [3 + 21 * k for k in range(len(CLASSES))]  # 3 to 150; the background is 1, wall

    def write(folder):
        from .annotate import label_map

        base = folder / 'ADEChallengeData2016'
        for split, scenes in _scenes(num_train, num_val, seed, size):
            part = {'train': 'training', 'val': 'validation'}[split]
            for kind in ('images', 'annotations'):
                (base / kind / part).mkdir(parents=True)
            for index, scene in enumerate(scenes, start=1):
                labels = label_map(scene, values, background=1)
                labels[: scene.owner.shape[0] // 16] = 0  # a strip that nobody labelled
                write_image(base / 'images' / part / f'ADE_{split}_{index:08d}.jpg', scene.image)
                write_image(base / 'annotations' / part / f'ADE_{split}_{index:08d}.png', labels)

    return _build(root, 'ade20k', num_train, num_val, size, seed, write)


def write_mini_imagenet(root, *, num_train=2, num_val=1, size=128, seed=0):
    """Write a miniature of ImageNet with ten classes and return its root.

    It has `{train,val}/WNID/*.JPEG` and `meta/{train,val}.txt`, which number the classes. `num_train` and `num_val`
    are the numbers of images of each class.
    """

    def write(folder):
        (folder / 'meta').mkdir()
        counts = [count * len(WNIDS) for count in (num_train, num_val)]
        for split, scenes in _scenes(*counts, seed, size):
            lines = []
            for index, scene in enumerate(scenes):
                wnid = list(WNIDS)[index % len(WNIDS)]
                stem = f'{wnid}_{index + 1}' if split == 'train' else f'ILSVRC2012_val_{index + 1:08d}'
                name = f'{stem}.JPEG'
                (folder / split / wnid).mkdir(parents=True, exist_ok=True)
                write_image(folder / split / wnid / name, scene.image)
                lines.append(f'{wnid}/{name} {WNIDS[wnid]}\n')
            (folder / 'meta' / f'{split}.txt').write_text(''.join(sorted(lines)))

    return _build(root, 'imagenet', num_train, num_val, size, seed, write)


WRITERS = {'coco': write_mini_coco, 'ade20k': write_mini_ade20k, 'imagenet': write_mini_imagenet}


def main(argv=None):
    """Write the miniature that the command line names, and print where it is."""
    parser = argparse.ArgumentParser(prog='python -m dat_mm.datasets.miniature', description=__doc__)
    parser.add_argument('kind', choices=WRITERS)
    parser.add_argument('root')
    options = parser.parse_args(argv)
    try:
        print(WRITERS[options.kind](options.root))
    except FileExistsError as error:
        parser.exit(1, f'{error}\n')


if __name__ == '__main__':
    main()
