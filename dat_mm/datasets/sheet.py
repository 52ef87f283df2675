# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""A contact sheet of Shapes: a row of scenes, and below it the same with boxes, masks and names."""

import argparse
import json
from pathlib import Path

from .classes import CLASSES, PALETTE
from .shapes import ensure_shapes, write_image
from .store import read_marker


def paste(tile, image):
    """Copy an image into the middle of a larger tile."""
    top, left = (tile.shape[0] - image.shape[0]) // 2, (tile.shape[1] - image.shape[1]) // 2
    tile[top : top + image.shape[0], left : left + image.shape[1]] = image


def write_text(image, text, left, bottom, size=0.5, colour=(0, 0, 0), ground=None):
    """Write a line inside the image, on a filled box where `ground` is its colour."""
    import cv2

    (width, height), below = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, 1)
    left = max(min(left, image.shape[1] - width - 3), 2)
    bottom = max(min(bottom, image.shape[0] - below), height + 2)
    if ground is not None:
        cv2.rectangle(image, (left - 2, bottom - height - 2), (left + width + 1, bottom + below - 1), ground, -1)
    cv2.putText(image, text, (left, bottom), cv2.FONT_HERSHEY_SIMPLEX, size, colour, 1, cv2.LINE_AA)


def draw_objects(image, records, zoom, size=0.45):
    """Draw the masks, boxes and names of COCO records on an enlarged image; a crowd has a white box.

    A prediction's name is followed by its score in percent. `size` is that of the letters.
    """
    import cv2
    import numpy as np
    from pycocotools import mask as coco_mask

    height, width = image.shape[0] // zoom, image.shape[1] // zoom
    names = []
    for record in records:
        name = CLASSES[record['category_id'] - 1]
        colour = PALETTE[record['category_id'] - 1][::-1]
        mask = record['segmentation']
        if isinstance(mask, list) or isinstance(mask['counts'], list):  # polygons, uncompressed run lengths
            runs = coco_mask.frPyObjects(mask, height, width)
            mask = coco_mask.merge(runs) if isinstance(runs, list) else runs
        mask = cv2.resize(255 * coco_mask.decode(mask), image.shape[1::-1], interpolation=cv2.INTER_CUBIC) > 127
        image[mask] = (0.5 * image[mask] + 0.5 * np.array(colour)).astype(np.uint8)
        outlines = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]
        cv2.drawContours(image, outlines, -1, colour, zoom, cv2.LINE_AA)
        x, y, w, h = (round(zoom * value) for value in record['bbox'])
        line = (255, 255, 255) if record.get('iscrowd') else colour
        cv2.rectangle(image, (x, y), (x + w - 1, y + h - 1), line, 1)
        text = f'{name} crowd' if record.get('iscrowd') else name
        if 'score' in record:
            text += f' {100 * record["score"]:.0f}'
        names.append((text, x + 2, y - 3, line))
    for text, x, y, colour in names:  # above all masks
        bright = sum(colour) > 420
        write_text(image, text, x, y, size, (0, 0, 0) if bright else (255, 255, 255), colour)
    return image


def draw_sheet(root='data/shapes', split='val', columns=5, first=0, zoom=2):
    """A contact sheet (H, W, 3) of uint8, BGR, of `columns` scenes from number `first` on."""
    import cv2
    import numpy as np

    root = Path(root)
    content = json.loads((root / 'annotations' / f'instances_{split}.json').read_text())
    chosen = content['images'][first : first + columns]
    side = zoom * max(max(image['height'], image['width']) for image in content['images']) + 6
    sheet = np.full((2, columns, side, side, 3), 255, np.uint8)
    for column, image in enumerate(chosen):
        pixels = cv2.imread(str(root / 'images' / split / image['file_name']))
        pixels = cv2.resize(pixels, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
        records = [record for record in content['annotations'] if record['image_id'] == image['id']]
        paste(sheet[0, column], pixels)
        paste(sheet[1, column], draw_objects(pixels.copy(), records, zoom))
    return sheet.swapaxes(1, 2).reshape(2 * side, columns * side, 3)


def main(argv=None):
    """Write the contact sheet that the command line asks for."""
    parser = argparse.ArgumentParser(prog='python -m dat_mm.datasets.sheet', description=__doc__)
    parser.add_argument('out', type=Path, help='a .png or .jpg file')
    parser.add_argument('--root', default='data/shapes')
    parser.add_argument('--split', default='val', choices=('train', 'val'))
    parser.add_argument('--columns', type=int, default=5)
    parser.add_argument('--first', type=int, default=0)
    parser.add_argument('--zoom', type=int, default=2)
    options = vars(parser.parse_args(argv))
    out = options.pop('out')
    if read_marker(options['root']) is None:
        ensure_shapes(options['root'])
    write_image(out, draw_sheet(**options), quality=80)


if __name__ == '__main__':
    main()
