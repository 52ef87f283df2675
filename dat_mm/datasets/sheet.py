# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""A contact sheet of Shapes: scenes above, the same with boxes, masks and names below."""

import argparse
import json
from pathlib import Path

from .classes import CLASSES, PALETTE
from .shapes import ensure_shapes, write_image
from .store import read_marker


def paste(tile, image):
    """Into the middle of a larger tile."""
    top, left = (tile.shape[0] - image.shape[0]) // 2, (tile.shape[1] - image.shape[1]) // 2
    tile[top : top + image.shape[0], left : left + image.shape[1]] = image


def draw_objects(image, records, zoom):
    """Boxes, masks and names, from COCO records, on the enlarged image; a crowd has a white box."""
    import cv2
    import numpy as np
    from pycocotools import mask as coco_mask

    height, width = image.shape[0] // zoom, image.shape[1] // zoom
    for record in records:
        name = CLASSES[record['category_id'] - 1]
        colour = PALETTE[record['category_id'] - 1][::-1]
        mask = record['segmentation']
        if isinstance(mask, list) or isinstance(mask['counts'], list):  # polygons, uncompressed run lengths
            runs = coco_mask.frPyObjects(mask, height, width)
            mask = coco_mask.merge(runs) if isinstance(runs, list) else runs
        mask = np.kron(coco_mask.decode(mask), np.ones((zoom, zoom), np.uint8)).astype(bool)
        image[mask] = (0.45 * image[mask] + 0.55 * np.array(colour)).astype(np.uint8)
        x, y, w, h = (round(zoom * value) for value in record['bbox'])
        line = (255, 255, 255) if record.get('iscrowd') else colour
        cv2.rectangle(image, (x, y), (x + w - 1, y + h - 1), line, 1)
        text = f'{name} crowd' if record.get('iscrowd') else name
        if 'score' in record:
            text += f' {100 * record["score"]:.0f}'
        where = (max(min(x + 2, image.shape[1] - 7 * len(text)), 0), max(y - 3, 10))
        for ink, thick in (((0, 0, 0), 3), ((255, 255, 255), 1)):
            cv2.putText(image, text, where, cv2.FONT_HERSHEY_SIMPLEX, 0.38, ink, thick, cv2.LINE_AA)
    return image


def draw_sheet(root='data/shapes', split='val', columns=5, first=0, zoom=2):
    """(H, W, 3) uint8, BGR: two rows of `columns` scenes from number `first` on."""
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
