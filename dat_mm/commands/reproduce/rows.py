# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The rows of the tables: what the metafiles say of each config."""

from pathlib import Path
from typing import NamedTuple

import yaml

from ...errors import UserError

# What tools/test.py names a metric, what the metafiles name it, and by how much the one is smaller.
METRICS = {
    'accuracy/top1': ('Top 1 Accuracy', 1),
    'accuracy/top5': ('Top 5 Accuracy', 1),
    'coco/bbox_mAP': ('box AP', 100),
    'coco/bbox_mAP_50': ('box AP50', 100),
    'coco/bbox_mAP_75': ('box AP75', 100),
    'coco/bbox_mAP_s': ('box AP small', 100),
    'coco/bbox_mAP_m': ('box AP medium', 100),
    'coco/bbox_mAP_l': ('box AP large', 100),
    'coco/segm_mAP': ('mask AP', 100),
    'coco/segm_mAP_50': ('mask AP50', 100),
    'coco/segm_mAP_75': ('mask AP75', 100),
    'coco/segm_mAP_s': ('mask AP small', 100),
    'coco/segm_mAP_m': ('mask AP medium', 100),
    'coco/segm_mAP_l': ('mask AP large', 100),
    'coco_panoptic/PQ': ('PQ', 1),
    'coco_panoptic/SQ': ('SQ', 1),
    'coco_panoptic/RQ': ('RQ', 1),
    'coco_panoptic/PQ_th': ('PQ things', 1),
    'coco_panoptic/PQ_st': ('PQ stuff', 1),
    'mIoU': ('mIoU', 1),
    'mAcc': ('mAcc', 1),
    'aAcc': ('aAcc', 1),
}
AUGMENTED = '(ms+flip)'  # ends the name of a metric that is measured with several scales and flips
TASKS = {
    'Top': 'Image Classification',
    'box': 'Object Detection',
    'mask': 'Instance Segmentation',
    **dict.fromkeys(('PQ', 'SQ', 'RQ'), 'Panoptic Segmentation'),
}


class Row(NamedTuple):
    """One config of a table."""

    name: str
    config: Path
    published: dict[str, float]  # metrics that others measured
    pretrained: Path | None  # the config of the training that this one starts from
    metafile: Path | None

    @property
    def augmented(self) -> bool:
        """Says whether the row has a figure for several scales and flips."""
        return any(name.endswith(AUGMENTED) for name in self.published)


def named(metrics: dict, augmented: bool = False) -> dict[str, float]:
    """Gives what tools/test.py measured the names and the units of the metafiles."""
    found = {}
    for key, value in metrics.items():
        if key in METRICS and value >= 0:  # COCO's -1: there are no objects of that size
            name, factor = METRICS[key]
            found[name + AUGMENTED if augmented else name] = round(float(value) * factor, 3)
    return found


def task_of(metric: str) -> str:
    """The task that the metafiles have a metric under."""
    return TASKS.get(metric.split()[0], 'Semantic Segmentation')


def _read(metafile: Path) -> list[Row]:
    root = metafile.resolve().parent
    while root.name != 'configs' and root != root.parent:
        root = root.parent
    rows = []
    for model in yaml.safe_load(metafile.read_text()).get('Models', ()):
        own = str(model.get('Results From', '')).startswith(OURS)
        published = {} if own else {k: v for result in model.get('Results', ()) for k, v in result['Metrics'].items()}
        pretrained = model.get('Metadata', {}).get('Pretrained From')
        rows.append(
            Row(
                model['Name'],
                root.parent / model['Config'],
                published,
                root.parent / pretrained if pretrained else None,
                metafile,
            )
        )
    return rows


OURS = 'tools/reproduce.py'  # begins `Results From` of what this tool measured


def read_rows(paths) -> list[Row]:
    """Reads the rows of folders of configs, and those of single configs, which need not be in a metafile."""
    rows = {}
    for path in map(Path, paths):
        if path.is_dir():
            metafile = path / 'metafile.yml'
            if not metafile.is_file():
                raise UserError(f'{path} has no metafile.yml, which says what the rows of its table are')
            found = _read(metafile)
        elif path.suffix == '.py' and path.is_file():
            metafile = path.parent / 'metafile.yml'
            known = _read(metafile) if metafile.is_file() else []
            found = [row for row in known if row.config.resolve() == path.resolve()]
            found = found or [Row(path.stem, path, {}, None, None)]
        else:
            raise UserError(f'{path} is neither a folder of configs nor a config')
        rows.update({row.config.resolve(): row for row in found})
    return list(rows.values())


def with_pretraining(rows: list[Row]) -> list[Row]:
    """Puts before the rows the trainings that they start from."""
    ordered = {}

    def add(row):
        if row.pretrained is not None and row.pretrained.resolve() not in ordered:
            add(read_rows([row.pretrained])[0])
        ordered.setdefault(row.config.resolve(), row)

    for row in rows:
        add(row)
    return sorted(ordered.values(), key=lambda row: row.pretrained is not None)
