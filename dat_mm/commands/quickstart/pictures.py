# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Pictures of predictions: scenes beside the truth, and crops with their names."""

import json
import pickle
from pathlib import Path

TITLE_HEIGHT = 26


def as_records(sample, least_score) -> list:
    """The objects of a prediction that mmdet dumped, as COCO records, the likeliest last so that it lies on top."""
    found = sample['pred_instances']
    records = []
    for box, label, score, mask in zip(*(found[key] for key in ('bboxes', 'labels', 'scores', 'masks')), strict=True):
        if score >= least_score:
            x, y, right, bottom = box.tolist()
            box = [x, y, right - x, bottom - y]
            records.append(dict(category_id=int(label) + 1, score=float(score), bbox=box, segmentation=mask))
    return records[::-1]


def draw_predictions(data_root, predictions, path, *, columns=5, first=0, zoom=2, least_score=0.5, width=1000) -> None:
    """Draws a row of held-out scenes with the truth, and a row for each of `predictions`, {title: pickle of mmdet}.

    The picture is drawn large and made `width` pixels wide.
    """
    import cv2
    import numpy as np

    from ...datasets.sheet import draw_objects, paste, write_text

    data_root = Path(data_root)
    content = json.loads((data_root / 'annotations/instances_val.json').read_text())
    images = content['images'][first : first + columns]
    rows = {'truth': {image['id']: [] for image in images}}
    for record in content['annotations']:
        rows['truth'].setdefault(record['image_id'], []).append(record)
    for title, file in predictions.items():
        samples = pickle.loads(Path(file).read_bytes())
        rows[title] = {sample['img_id']: as_records(sample, least_score) for sample in samples}

    side = zoom * max(max(image['height'], image['width']) for image in images) + 6
    sheet = np.full((len(rows), TITLE_HEIGHT + side, len(images), side, 3), 255, np.uint8)
    for row, records in enumerate(rows.values()):
        for column, image in enumerate(images):
            pixels = cv2.imread(str(data_root / 'images/val' / image['file_name']))
            pixels = cv2.resize(pixels, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
            paste(sheet[row, TITLE_HEIGHT:, column], draw_objects(pixels, records[image['id']], zoom, size=0.6))
    sheet = sheet.reshape(len(rows), TITLE_HEIGHT + side, -1, 3)
    for row, title in zip(sheet, rows, strict=True):
        write_text(row, title, 6, TITLE_HEIGHT - 6, size=0.65)
    sheet = sheet.reshape(-1, *sheet.shape[2:])
    height = round(sheet.shape[0] * width / sheet.shape[1])
    write_palette_png(path, cv2.resize(sheet, (width, height), interpolation=cv2.INTER_AREA))


def draw_crops(predictions, path, *, columns=10, zoom=1) -> None:
    """Draws held-out crops from a pickle of mmpretrain, a row for each class, each with the name the model gave it.

    A green name is right, a red one wrong.
    """
    import cv2
    import numpy as np

    from ...datasets import CLASSES
    from ...datasets.sheet import write_text

    samples = pickle.loads(Path(predictions).read_bytes())
    rows = [[sample for sample in samples if int(sample['gt_label']) == label] for label in range(len(CLASSES))]
    side, name_height, gap = 88, 16, 4
    sheet = np.full((len(rows), side + name_height + gap, columns, side + gap, 3), 255, np.uint8)
    for row, found in enumerate(rows):
        for column, sample in enumerate(found[:: max(1, len(found) // columns)][:columns]):
            tile = sheet[row, :, column]
            tile[:side, :side] = cv2.resize(cv2.imread(sample['img_path']), (side, side), interpolation=cv2.INTER_AREA)
            label = int(sample['pred_label'])
            colour = (40, 130, 30) if label == row else (40, 40, 220)
            write_text(tile, CLASSES[label], 2, side + name_height - 4, size=0.42, colour=colour)
    sheet = sheet.reshape(len(rows) * (side + name_height + gap), -1, 3)
    write_palette_png(path, sheet)


def write_palette_png(path, image, colours=256) -> None:
    """Writes a PNG of at most so many colours, which keeps noisy pictures small."""
    import cv2
    from PIL import Image

    picture = Image.fromarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    picture = picture.quantize(colours, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    partial = Path(path).with_suffix('.partial')
    picture.save(partial, format='PNG', optimize=True)
    partial.replace(path)
