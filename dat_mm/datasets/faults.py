# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What can be wrong with data: images, annotations in COCO's format, segmentation maps, samples ready for a model."""

import json
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import NamedTuple

import numpy as np

TOLERANCE = 1.0  # pixels by which a box may reach beyond its image


class Fault(NamedTuple):
    """One thing that is wrong."""

    kind: str  # in a few words, the same for all of its kind
    file: str
    text: str  # where in the file, with the value and the rule

    def __str__(self):
        return f'{self.file}: {self.text}'


# ---- images


def image_fault(path: str | Path) -> tuple[str, str] | tuple[None, tuple[int, int]]:
    """The kind and text of what is wrong with an image, or None and its height and width. It is decoded whole."""
    from PIL import Image

    path = Path(path)
    try:
        if not path.stat().st_size:
            return 'empty file', 'the file is empty'
        with Image.open(path) as image:
            image.load()
            return None, (image.height, image.width)
    except FileNotFoundError:
        return 'missing file', 'the file is not there'
    except IsADirectoryError:
        return 'missing file', 'it is a folder'
    except Exception as error:  # decoders fail in many ways
        return 'damaged image', f'it cannot be decoded: {_line(error)}'


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def sample_faults(image, size=None, seg_map=None, classes=None, ignored=(0, 255)) -> list[Fault]:
    """What is wrong with an image, its size in the annotations (height, width), and its segmentation map."""
    kind, found = image_fault(image)
    if kind is not None:
        return [Fault(kind, str(image), found)]
    faults = []
    if size is not None and tuple(size) != found:
        text = f'the image is {found[1]}x{found[0]}, and its annotations say {size[1]}x{size[0]}'
        faults.append(Fault('image of another size', str(image), text))
    if seg_map is not None:
        faults += _map_faults(seg_map, found, classes, ignored)
    return faults


def _map_faults(path, size, classes, ignored) -> list[Fault]:
    from PIL import Image

    kind, found = image_fault(path)
    if kind is not None:
        return [Fault(f'{kind} of a segmentation map', str(path), found)]
    if found != size:
        text = f'the map is {found[1]}x{found[0]}, and its image {size[1]}x{size[0]}'
        return [Fault('segmentation map of another size', str(path), text)]
    with Image.open(path) as image:
        values = np.unique(np.asarray(image))
    unknown = [int(value) for value in values if value not in ignored and classes is not None and value > classes]
    if unknown:
        text = f'the value {unknown[0]} is of no class: there are {classes}'
        return [Fault('unknown class', str(path), text)]
    return []


# ---- annotations in COCO's format


def _number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value)


def read_annotations(path: str | Path) -> tuple[dict | None, list[Fault]]:
    """The content of an annotation file, or None and what is wrong with it."""
    name = str(path)
    try:
        text = Path(path).read_text()
    except FileNotFoundError:
        return None, [Fault('missing file', name, 'the file is not there')]
    except (OSError, UnicodeDecodeError) as error:
        return None, [Fault('no annotations', name, f'it cannot be read: {_line(error)}')]
    if not text.strip():
        return None, [Fault('empty file', name, 'the file is empty')]
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        return None, [Fault('no annotations', name, f'it is no JSON: {_line(error)}')]
    for key in ('images', 'annotations', 'categories'):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            return None, [Fault('no annotations', name, f'it has no list {key!r}')]
    return content, []


def coco_faults(path: str | Path, classes=None) -> Iterator[Fault]:
    """Yields what is wrong with an annotation file. `classes` are the names that the data set of the config has."""
    content, faults = read_annotations(path)
    yield from faults
    if content is None:
        return
    name = str(path)
    images = {}
    for n, image in enumerate(content['images']):
        fault = _image_entry_fault(image, images)
        if fault is not None:
            yield Fault(fault[0], name, f'image {n}: {fault[1]}')
        else:
            images[image['id']] = image
    categories = {}
    for n, category in enumerate(content['categories']):
        known = category if isinstance(category, dict) else {}
        if not isinstance(known.get('name'), str) or not _hashable(known.get('id')):
            yield Fault('category without id or name', name, f'category {n} is {_short(category)}')
            continue
        categories[category['id']] = category['name']
    if classes is not None and not set(classes) & set(categories.values()):
        text = f'none of its categories is a class of the config, such as {next(iter(classes))!r}'
        yield Fault('unknown class', name, text)
    ids = set()
    for n, entry in enumerate(content['annotations']):
        known = entry if isinstance(entry, dict) else {}
        image = _found(images, known.get('image_id'))
        where = f'annotation {_short(known.get("id", n))}'
        if image is not None:
            where += f' of {image["file_name"]}'
        for kind, text in _annotation_faults(entry, image, categories, classes):
            yield Fault(kind, name, f'{where}: {text}')
        if _hashable(known.get('id')):
            if known['id'] in ids:
                yield Fault('number of an annotation twice', name, f'{where} is there twice')
            ids.add(known['id'])


def _found(entries: dict, key):
    """The entry of an id, or None for an id that no entry can have."""
    return entries.get(key) if _hashable(key) else None


def _hashable(value) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


def _image_entry_fault(image, known):
    if not isinstance(image, dict) or not _hashable(image.get('id')) or not isinstance(image.get('file_name'), str):
        return 'image without id or file name', f'it is {_short(image)}'
    if image['id'] in known:
        other = known[image['id']]['file_name']
        return 'number of an image twice', f'{image["file_name"]} has the id {image["id"]} of {other}'
    for key in ('height', 'width'):
        if not isinstance(image.get(key), int) or image[key] <= 0:
            return 'image without a size', f'{image["file_name"]} has the {key} {_short(image.get(key))}'
    return None


def _annotation_faults(entry, image, categories, classes):
    """Yields the kind and the text of each fault of an annotation."""
    if not isinstance(entry, dict):
        yield 'annotation without content', f'it is {_short(entry)}'
        return
    if image is None:
        yield 'annotation of no image', f'no image has the id {_short(entry.get("image_id"))}'
    category_id = entry.get('category_id')
    if _found(categories, category_id) is None:
        yield 'unknown class', f'no category has the id {_short(category_id)}'
    elif classes is not None and categories[category_id] not in classes:
        yield 'unknown class', f'the class {categories[category_id]!r} is not one of the config'
    yield from _box_faults(entry.get('bbox'), image)
    area = entry.get('area')
    if area is not None and (not _number(area) or area <= 0):
        yield 'zero area', f'the area is {_short(area)}, and must be above 0'
    if entry.get('segmentation') is not None:
        yield from _outline_faults(entry['segmentation'], image)


def _box_faults(box, image):
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(value, (int, float)) for value in box):
        yield 'no box', f'the box is {_short(box)}, and must be [x, y, width, height]'
    elif not all(map(_number, box)):
        yield 'box that is not finite', f'the box is {_short(box)}'
    elif box[2] <= 0 or box[3] <= 0:
        yield 'zero area', f'the box {_short(box)} has no width or no height'
    elif image is not None:
        x, y, width, height = box
        beyond = max(-x, -y, x + width - image['width'], y + height - image['height'])
        if beyond > TOLERANCE:
            text = f'the box {_short(box)} reaches {beyond:.1f} pixels out of {image["width"]}x{image["height"]}'
            yield 'box outside the image', text


def _outline_faults(outline, image):
    if isinstance(outline, dict):
        yield from _run_length_faults(outline, image)
        return
    if not isinstance(outline, list) or not outline:
        yield 'no outline', f'the segmentation is {_short(outline)}'
        return
    for polygon in outline:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            yield 'no outline', f'a polygon is {_short(polygon)}, and must be three or more points x, y'
        elif not all(map(_number, polygon)):
            yield 'outline that is not finite', f'a polygon is {_short(polygon)}'


def _run_length_faults(outline, image):
    size, counts = outline.get('size'), outline.get('counts')
    if image is not None and size != [image['height'], image['width']]:
        text = f'the mask is of size {_short(size)}, and its image [{image["height"]}, {image["width"]}]'
        yield 'mask of another size', text
    elif isinstance(counts, list):
        total = sum(counts) if all(isinstance(count, int) and count >= 0 for count in counts) else None
        if not isinstance(size, list) or len(size) != 2 or total != size[0] * size[1]:
            yield 'no outline', f'the run lengths of a mask add up to {total}, and its size is {_short(size)}'
    elif not isinstance(counts, str):
        yield 'no outline', f'the run lengths of a mask are {_short(counts)}'


# ---- samples ready for a model


def sizes_differ(results: dict) -> str | None:
    """What is wrong with a loaded image and its segmentation map, whose sizes must be the same."""
    image, labels = results.get('img'), results.get('gt_seg_map')
    if image is None or labels is None or image.shape[:2] == labels.shape[:2]:
        return None
    (height, width), (rows, columns) = image.shape[:2], labels.shape[:2]
    return f'its segmentation map {results.get("seg_map_path", "")} is {columns}x{rows}, and the image {width}x{height}'


def fault_of_sample(item) -> str | None:
    """What is wrong with a sample that came out of its transforms, or None."""
    sample = item.get('data_samples') if isinstance(item, dict) else None
    boxes = getattr(getattr(sample, 'gt_instances', None), 'bboxes', None)
    boxes = getattr(boxes, 'tensor', boxes)
    if boxes is not None and len(boxes):
        if not bool(boxes.isfinite().all()):
            return f'a box is {_short([round(float(value), 1) for value in boxes[~boxes.isfinite().all(1)][0]])}'
        flat = (boxes[:, 2:] <= boxes[:, :2]).any(1)
        if bool(flat.any()):
            return f'a box has no area: {_short([round(float(value), 1) for value in boxes[flat][0]])}'
    return None
