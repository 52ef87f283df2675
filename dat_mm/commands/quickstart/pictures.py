# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Predictions beside the truth, as one picture."""

import json
import pickle
from pathlib import Path

TITLE_HEIGHT = 22


def as_records(sample, least_score) -> list:
    """A prediction as mmdet dumps it, as COCO records."""
    found = sample['pred_instances']
    records = []
    for box, label, score, mask in zip(*(found[key] for key in ('bboxes', 'labels', 'scores', 'masks')), strict=True):
        if score >= least_score:
            x, y, right, bottom = box.tolist()
            box = [x, y, right - x, bottom - y]
            records.append(dict(category_id=int(label) + 1, score=float(score), bbox=box, segmentation=mask))
    return records[::-1]  # the likeliest on top


def draw_predictions(data_root, predictions, path, *, columns=6, first=0, zoom=2, least_score=0.5) -> None:
    """A row of held-out scenes with the truth, and one for each of `predictions`, {title: pickle of mmdet}."""
    import cv2
    import numpy as np

    from ...datasets.shapes import write_image
    from ...datasets.sheet import draw_objects, paste

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
            paste(sheet[row, TITLE_HEIGHT:, column], draw_objects(pixels, records[image['id']], zoom))
    sheet = sheet.reshape(len(rows), TITLE_HEIGHT + side, -1, 3)
    for row, title in zip(sheet, rows, strict=True):
        cv2.putText(row, title, (4, TITLE_HEIGHT - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
    write_image(Path(path), sheet.reshape(-1, *sheet.shape[2:]))
