# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Masks in COCO's formats: polygons along the edges of pixels for objects, run lengths for crowds."""

import cv2
import numpy as np

from .outlines import polygon_area


def _corner_contour(contour):
    """Corners on the grid of pixels of a contour of the doubled mask, leaving out points on a straight line."""
    points = (contour[:, 0] + 1) // 2
    points = points[np.any(points != np.roll(points, 1, axis=0), axis=1)]
    back, ahead = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    return points[back[:, 0] * ahead[:, 1] != back[:, 1] * ahead[:, 0]]


def _cut_to(outer, hole):
    """Join a hole to its outer contour by a cut of no width, since COCO's polygons cannot have holes."""
    distance = np.abs(outer[:, None] - hole[None]).sum(axis=-1)
    i, j = np.unravel_index(distance.argmin(), distance.shape)
    return np.concatenate([outer[: i + 1], hole[j:], hole[: j + 1], outer[i:]])


def mask_to_polygons(mask):
    """Polygons [x, y, x, y, ...] of a mask (H, W), one for each part; together they cover it exactly."""
    y, x = np.nonzero(mask)
    if not len(y):
        return []
    origin = np.array([x.min(), y.min()])
    window = mask[y.min() : y.max() + 1, x.min() : x.max() + 1].astype(np.uint8)
    # half the index of a border pixel of the doubled mask, rounded up, is the edge next to it
    doubled = np.repeat(np.repeat(window, 2, axis=0), 2, axis=1)
    contours, tree = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    corners = [_corner_contour(contour) for contour in contours]
    polygons = {index: corners[index] for index in range(len(corners)) if tree[0][index][3] < 0}
    for index, corner in enumerate(corners):
        parent = tree[0][index][3]
        if parent >= 0:
            if polygon_area(corner) * polygon_area(corners[parent]) > 0:
                corner = corner[::-1]
            polygons[parent] = _cut_to(polygons[parent], corner)
    return [(polygon + origin).ravel().tolist() for polygon in polygons.values()]


def mask_to_runs(mask):
    """Uncompressed run lengths of a mask, column by column. The first run counts zeros."""
    flat = mask.T.ravel().astype(np.uint8)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [0]]))[: flat.size])
    counts = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return {'counts': counts, 'size': list(mask.shape)}


def tight_box(mask):
    """The smallest box around a mask, as [x, y, width, height]."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)]


def annotate(scene, image_id, category_ids):
    """COCO's records of the objects in a scene, without ids: `coco_file` numbers them."""
    records = []
    for index, label in enumerate(scene.labels):
        mask = scene.mask(index)
        crowd = scene.crowd[index]
        records.append(
            {
                'image_id': image_id,
                'category_id': category_ids[label],
                'bbox': tight_box(mask),
                'area': int(mask.sum()),
                'iscrowd': int(crowd),
                'segmentation': mask_to_runs(mask) if crowd else mask_to_polygons(mask),
            }
        )
    return records


def coco_file(images, records, categories, description):
    """The content of an annotation file. The ids of annotations count from 1."""
    return {
        'info': {
            'description': description,
            'version': '1.0',
            'year': 2024,
            'contributor': 'dat_mm',
            'url': '',
            'date_created': '',
        },
        'licenses': [{'id': 1, 'name': 'CC0 1.0', 'url': 'https://creativecommons.org/publicdomain/zero/1.0/'}],
        'images': images,
        'annotations': [dict(id=number, **record) for number, record in enumerate(records, start=1)],
        'categories': categories,
    }


def image_record(image_id, file_name, scene):
    """COCO's record of the image of a scene."""
    height, width = scene.owner.shape
    unknown = dict.fromkeys(('coco_url', 'flickr_url', 'date_captured'), '')
    return {'id': image_id, 'file_name': file_name, 'width': width, 'height': height, 'license': 1, **unknown}


def label_map(scene, values, background):
    """A map (H, W) of uint8: `values[label]` where an object is seen, 0 on crowds, `background` elsewhere."""
    objects = [0 if crowd else values[label] for label, crowd in zip(scene.labels, scene.crowd, strict=True)]
    return np.array([background, *objects], np.uint8)[scene.owner]


def crop_object(scene, index, size, margin=1.3):
    """A square around the visible part of an object, `size` pixels wide. Beyond the frame the image is mirrored."""
    x, y, width, height = tight_box(scene.mask(index))
    side = max(round(max(width, height) * margin), 4)
    left, top = x + (width - side) // 2, y + (height - side) // 2
    bottom, right = top + side - scene.owner.shape[0], left + side - scene.owner.shape[1]
    pads = [max(0, pad) for pad in (-top, bottom, -left, right)]
    image = cv2.copyMakeBorder(scene.image, *pads, cv2.BORDER_REFLECT_101)
    top, left = top + pads[0], left + pads[2]
    crop = image[top : top + side, left : left + side]
    return cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA if side > size else cv2.INTER_LINEAR)
