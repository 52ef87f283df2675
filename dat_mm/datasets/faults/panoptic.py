# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Faults of COCO's panoptic annotations: a file with the segments of each image, and a map of their ids for each."""

from collections.abc import Iterator

import numpy as np

from .fault import Fault, brief, is_number, read_bytes, read_json, shown
from .images import image_faults, open_with_pillow

PARTS = ('images', 'annotations', 'categories')


def panoptic_faults(path, classes, maps: list) -> Iterator[Fault]:
    """Yields what is wrong with a panoptic annotation file, and adds (file name, size, ids of segments) to `maps`."""
    content, fault = read_json(path)
    if fault:
        yield fault
        return
    path = str(path)
    parts = {part: content.get(part) if isinstance(content, dict) else None for part in PARTS}
    for part, found in parts.items():
        if not isinstance(found, list) or not all(isinstance(record, dict) for record in found):
            yield Fault(path, 'structure', f'{part!r} is {brief(found)}, not a list of objects')
            return
    names = {str(record.get('id')): record.get('name') for record in parts['categories']}
    for name in classes or ():
        if name not in names.values():
            yield Fault(path, 'class of no category', f'no category is named {brief(name)}, as a class is')
    segments = {}
    for record in parts['annotations']:
        infos = record.get('segments_info')
        if not isinstance(infos, list) or not all(isinstance(info, dict) for info in infos):
            where = f'annotation of image {brief(record.get("image_id"))}'
            yield Fault(path, 'structure', f'{where}: segments_info is {brief(infos)}, not a list of objects')
            continue
        for info in infos:
            if str(info.get('category_id')) not in names:
                what = f'segment {brief(info.get("id"))} of image {brief(record.get("image_id"))}'
                found = brief(info.get('category_id'))
                yield Fault(path, 'unknown category', f'{what}: category_id is {found}, and no category has that id')
        ids = (info.get('id') for info in infos)
        segments[str(record.get('image_id'))] = tuple(value if isinstance(value, int) else repr(value) for value in ids)
    for record in parts['images']:
        number, name = str(record.get('id')), record.get('file_name')
        if not isinstance(name, str) or not name:
            yield Fault(path, 'file name', f'image {brief(number)}: file_name is {brief(name)}, not the name of a file')
        elif number not in segments:
            yield Fault(path, 'unknown image', f'image {brief(number)} has no annotation')
        else:
            size = tuple(side if is_number(side) else 0 for side in (record.get('width'), record.get('height')))
            maps.append((name, size, segments[number]))


def segment_faults(image_path, map_path, size, ids) -> Iterator[Fault]:
    """Yields what is wrong with an image and with the map of its segments, whose ids are the annotations'."""
    yield from image_faults(image_path, size)
    content, fault = read_bytes(map_path)
    if fault:
        yield Fault(
            fault.file, fault.kind.replace('file', 'map'), f'{fault.what}; it is the map of {shown(image_path)}'
        )
        return
    values, reason = open_with_pillow(content)
    if reason:
        yield Fault(str(map_path), 'corrupt map', f'is corrupt or cut off ({reason})')
        return
    if values.ndim != 3 or values.shape[-1] != 3:
        yield Fault(
            str(map_path), 'map of channels', f'is of shape {values.shape}, and a map of segments has three colours'
        )
        return
    if values.shape[1::-1] != tuple(size):
        shape = f'{values.shape[1]} x {values.shape[0]}'
        yield Fault(str(map_path), 'map size', f'is {shape} pixels, and its image {brief(size[0])} x {brief(size[1])}')
    found = {int(value) for value in np.unique(values.astype(np.int64) @ [1, 256, 65536])} - {0}
    for kind, odd, rule in (
        ('unknown segment', sorted(found - {value for value in ids if isinstance(value, int)}), 'no annotation has'),
        ('segment without pixels', [value for value in ids if value not in found], 'no pixel has'),
    ):
        if odd:
            yield Fault(str(map_path), kind, f'segment {brief(odd[0])} is one of {len(odd)} that {rule}')
