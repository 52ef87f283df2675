# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Faults of COCO's annotation files, read as they are: pycocotools and mmdet raise on some and drop others silently."""

import math
from collections import Counter
from collections.abc import Iterator

from .fault import Fault, brief, is_number, read_json
from .segmentations import segmentation_fault

SLACK = 1  # pixels that a box may stand out of its image, as rounded numbers do
# Kinds of faults that mmdet does not notice: it drops the objects, or trains with them as they are.
UNNOTICED = frozenset({'box without area', 'box outside its image', 'box partly outside its image', 'segmentation'})
UNNOTICED |= {
    'unknown image',
    'unknown category',
    'category of no class',
    'class of no category',
    'order of categories',
}
PARTS = {'images': 'image', 'annotations': 'annotation', 'categories': 'category'}


def coco_faults(path, classes, images: list, *, masks=False, evaluated=False) -> Iterator[Fault]:
    """Yields what is wrong with an annotation file, and adds (file name, (width, height) or None) to `images`.

    `classes` are the names of the data set's classes. `masks` says that each object needs a mask, and `evaluated` that
    the file is the truth of a metric, which needs `iscrowd`.
    """
    content, fault = read_json(path)
    if fault:
        yield fault
        return
    yield from _File(str(path), classes, masks, evaluated).faults(content, images)


class _File:
    """The rules of one file. What a later rule refers to is kept as the records are read."""

    def __init__(self, path, classes, masks, evaluated):
        self.path, self.classes, self.masks, self.evaluated = path, classes, masks, evaluated
        self.sizes, self.categories, self.used = {}, {}, Counter()

    def fault(self, kind, what):
        return Fault(self.path, kind, what)

    def faults(self, content, images):
        if not isinstance(content, dict):
            yield self.fault('structure', f'holds {brief(content)}, not an object with {", ".join(PARTS)}')
            return
        for part in PARTS:
            if not isinstance(content.get(part), list):
                found = brief(content[part]) if part in content else 'missing'
                yield self.fault('structure', f'{part!r} is {found}, not a list')
        images_, annotations, categories = (
            content.get(part) if isinstance(content.get(part), list) else [] for part in PARTS
        )
        yield from self._image_faults(images_, images)
        yield from self._category_faults(categories)
        yield from self._annotation_faults(annotations)
        yield from self._class_faults()

    def _records(self, part, records):
        """Yields (name, id, record) of each record, and a Fault for what is none or has no id of its own."""
        seen = set()
        for place, record in enumerate(records):
            if not isinstance(record, dict):
                yield self.fault('structure', f'{part} {place} (counted from 0) is {brief(record)}, not an object')
                continue
            number = record.get('id')
            name = f'{part} {brief(number)}'
            if isinstance(number, bool) or not isinstance(number, int | str):
                name = f'{part} {place} (counted from 0)'
                found = brief(number) if 'id' in record else 'missing'
                yield self.fault('id', f'{name}: the id is {found}, not a number')
            elif number in seen:
                yield self.fault('duplicate id', f'{name}: several have this id')
            else:
                seen.add(number)
            yield name, number, record

    def _image_faults(self, records, images):
        for found in self._records('image', records):
            if isinstance(found, Fault):
                yield found
                continue
            name, number, record = found
            size = record.get('width'), record.get('height')
            if not all(is_number(side) and side > 0 and side == int(side) for side in size):
                what = f'{name}: width and height are {brief(size[0])} and {brief(size[1])}, not whole numbers above 0'
                yield self.fault('size of an image', what)
                size = None
            if isinstance(number, int | str):
                self.sizes[number] = size
            file_name = record.get('file_name')
            if isinstance(file_name, str) and file_name:
                images.append((file_name, size))
            else:
                yield self.fault('file name', f'{name}: file_name is {brief(file_name)}, not the name of a file')

    def _category_faults(self, records):
        for found in self._records('category', records):
            if isinstance(found, Fault):
                yield found
                continue
            name, number, record = found
            if not isinstance(record.get('name'), str):
                yield self.fault('category', f'{name}: the name is {brief(record.get("name"))}, not a text')
            if isinstance(number, int | str):
                self.categories.setdefault(number, record.get('name'))

    def _annotation_faults(self, records):
        for found in self._records('annotation', records):
            if isinstance(found, Fault):
                yield found
            else:
                yield from self._object_faults(*found)

    def _object_faults(self, name, number, record):
        image, category = record.get('image_id'), record.get('category_id')
        size = None
        if not isinstance(image, int | float | str):
            yield self.fault('structure', f'{name}: image_id is {brief(image)}, not a number')
        elif image not in self.sizes:
            yield self.fault('unknown image', f'{name}: image_id is {brief(image)}, and no image has that id')
        else:
            size = self.sizes[image]
            name = f'{name} (image {brief(image)})'
        if not isinstance(category, int | float | str):
            yield self.fault('structure', f'{name}: category_id is {brief(category)}, not a number')
        elif category not in self.categories:
            yield self.fault(
                'unknown category', f'{name}: category_id is {brief(category)}, and no category has that id'
            )
        else:
            self.used[category] += 1
        yield from self._box_faults(name, record.get('bbox'), size)
        area = record.get('area')
        if not is_number(area) or area <= 0:
            yield self.fault('area', f'{name}: area is {brief(area)}, not a number above 0')
        crowd = record.get('iscrowd')
        if crowd not in (0, 1) and (self.evaluated or 'iscrowd' in record):
            yield self.fault('iscrowd', f'{name}: iscrowd is {brief(crowd)}, neither 0 nor 1')
        segmentation = record.get('segmentation')
        if segmentation or self.masks:
            reason = segmentation_fault(segmentation, size)
            if reason:
                yield self.fault('segmentation', f'{name}: {reason[1]}')

    def _box_faults(self, name, box, size):
        if not isinstance(box, list) or len(box) != 4 or not all(is_number(value) for value in box):
            yield self.fault('box', f'{name}: bbox is {brief(box)}, not four finite numbers')
            return
        x, y, width, height = box
        if width <= 0 or height <= 0:
            yield self.fault('box without area', f'{name}: bbox is {brief(box)}, of width or height 0 or less')
        elif size:
            outside = max(-x, -y, x + width - size[0], y + height - size[1])
            where = f'bbox is {brief(box)}, and its image {size[0]} x {size[1]} pixels'
            if x >= size[0] or y >= size[1] or x + width <= 0 or y + height <= 0:
                yield self.fault('box outside its image', f'{name}: {where}, so that it is wholly outside')
            elif outside > SLACK:
                what = f'{where}, so that it stands out by {outside:.4g} pixels (at most {SLACK})'
                yield self.fault('box partly outside its image', f'{name}: {what}')

    def _class_faults(self):
        if not self.classes:
            return
        names = list(self.categories.values())
        for number, count in self.used.items():
            name = self.categories[number]
            if name not in self.classes:
                rule = f'it names none of the classes, so that its {count} objects are dropped'
                yield self.fault('category of no class', f'category {brief(number)} is {brief(name)}: {rule}')
        for name in self.classes:
            if name not in names:
                rule = 'as a class is, so that the classes after it get the numbers before theirs'
                yield self.fault('class of no category', f'no category is named {brief(name)}, {rule}')
        order = [name for name in names if name in self.classes]
        if len(order) == len(self.classes):
            wrong = next((pair for pair in zip(order, self.classes, strict=True) if pair[0] != pair[1]), None)
            if wrong:
                what = f'category {brief(wrong[0])} comes where the classes have {brief(wrong[1])}; one order must do'
                yield self.fault('order of categories', what)


def instance_fault(instance: dict, size, *, masks: bool) -> str | None:
    """Finds what is wrong with an object as mmdet hands it to a pipeline, if anything is that training must not meet.

    mmdet itself ignores polygons of too few or an odd number of coordinates.
    """
    box = instance.get('bbox')
    if box is not None and not all(math.isfinite(value) for value in box):
        return f'a box is {brief(box)} (x1, y1, x2, y2), not of finite numbers'
    if masks:
        reason = segmentation_fault(instance.get('mask'), size)
        if reason and reason[0] != 'polygon':
            return reason[1]
    return None
