# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""COCO's panoptic annotations of synthetic scenes, made from those of instances: what no object covers is one stuff."""

import json

import numpy as np

from .annotate import tight_box

BACKGROUND = 1  # the id of the stuff in each map; those of the objects count from 2, and 0 is no segment


def _covered(record, height, width):
    """The pixels (H, W) of an object of an annotation file."""
    from pycocotools import mask as coco_mask

    segmentation = record['segmentation']
    runs = coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.decode(coco_mask.merge(runs) if isinstance(segmentation, list) else runs).astype(bool)


def segments(image, records, stuff_id):
    """The map (H, W) of the ids of the segments of an image, and COCO's record of each segment."""
    height, width = image['height'], image['width']
    ids = np.full((height, width), BACKGROUND, np.uint8)
    kinds = {BACKGROUND: (stuff_id, 0)}
    for number, record in enumerate(records, start=BACKGROUND + 1):
        ids[_covered(record, height, width)] = number
        kinds[number] = record['category_id'], record['iscrowd']
    found = []
    for number, (category, crowd) in kinds.items():
        mask = ids == number
        if mask.any():
            box, area = tight_box(mask), int(mask.sum())
            found.append({'id': number, 'category_id': category, 'iscrowd': crowd, 'bbox': box, 'area': area})
    return ids, found


def write_panoptic(instances, stuff, stuff_id, annotation_file, folder):
    """Write a panoptic annotation file and its folder of maps from the content of an instance annotation file.

    `stuff` are the categories of stuff, and `stuff_id` is the one of the background.
    """
    from .shapes import write_image

    folder.mkdir(parents=True)
    by_image = {}
    for record in instances['annotations']:
        by_image.setdefault(record['image_id'], []).append(record)
    annotations = []
    for image in instances['images']:
        ids, found = segments(image, by_image.get(image['id'], ()), stuff_id)
        name = image['file_name'].rsplit('.', 1)[0] + '.png'
        # the id is red + 256 green + 65536 blue, and OpenCV writes blue, green, red
        write_image(folder / name, np.stack([np.zeros_like(ids), np.zeros_like(ids), ids], axis=-1))
        annotations.append({'image_id': image['id'], 'file_name': name, 'segments_info': found})
    things = [{**category, 'isthing': 1} for category in instances['categories']]
    content = {
        **{key: instances[key] for key in ('info', 'licenses', 'images')},
        'annotations': annotations,
        'categories': [*things, *({**category, 'isthing': 0} for category in stuff)],
    }
    annotation_file.write_text(json.dumps(content, separators=(',', ':')))
