# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What files a data set is made of, and the faults of those that list its samples, read from its config alone."""

import os
from collections.abc import Iterator
from pathlib import Path

from mmengine.registry import DATASETS

from ..errors import UserError
from .faults import (
    Fault,
    Labels,
    coco_faults,
    folder_faults,
    image_faults,
    list_faults,
    map_faults,
    panoptic_faults,
    segment_faults,
    shown,
)

UNLIKE = {'LVISV05Dataset'}  # it derives from CocoDataset, but its files differ


def leaf_datasets(node: dict) -> Iterator[dict]:
    """Yields the data sets inside the config of one, which may be a wrapper around others."""
    inner = [node[key] for key in ('dataset', 'datasets') if key in node]
    if not inner:
        yield node
    for part in inner:
        for child in part if isinstance(part, (list, tuple)) else [part]:
            yield from leaf_datasets(child)


def survey(config) -> tuple[list[Fault], list[tuple]]:
    """Checks the annotations of a data set; returns their faults, and each sample as (function that reads it, *args).

    The data set is built without its annotations, which may be such that it cannot be built with them.
    """
    if (config.get('backend_args') or {}).get('backend', 'local') != 'local':
        raise UserError(f'{config["type"]}: its files are not on this disk (backend_args={config.backend_args})')
    if str(config['type']).startswith('dat_mm.'):
        _draw(config)
    dataset = DATASETS.build({**config, 'pipeline': [], 'lazy_init': True})
    names = [parent.__name__ for parent in type(dataset).__mro__]
    kind = next((name for name in names if name in SURVEYS), None)
    if kind is None or UNLIKE & set(names):
        raise UserError(f'{config["type"]}: only data sets that derive from {", ".join(SURVEYS)} can be checked')
    return SURVEYS[kind](dataset, config)


def _draw(config):
    """Draws Shapes unless it is there, as training would."""
    from .shapes import ensure_panoptic, ensure_shapes

    try:
        root = ensure_shapes(config.get('data_root', 'data/shapes'), **(config.get('make') or {}))
        if config['type'].endswith('Panoptic'):
            ensure_panoptic(root)
    except (FileExistsError, ValueError) as error:
        raise UserError(str(error)) from error


def _survey_coco(dataset, config):
    images = []
    faults = coco_faults(
        dataset.ann_file,
        dataset.metainfo.get('classes'),
        images,
        masks=any(step.get('with_mask') for step in config.get('pipeline') or ()),
        evaluated=dataset.test_mode,
    )
    faults = list(faults)
    folder = dataset.data_prefix.get('img', '')
    return faults, [(image_faults, os.path.join(folder, name), size) for name, size in images]


def _survey_panoptic(dataset, config):
    maps = []
    faults = list(panoptic_faults(dataset.ann_file, dataset.metainfo.get('classes'), maps))
    images, folder = (dataset.data_prefix.get(key) or '' for key in ('img', 'seg'))
    reads = [
        # mmdet looks for the map under the name of the image
        (segment_faults, os.path.join(images, name), os.path.join(folder, name.replace('.jpg', '.png')), size, ids)
        for name, size, ids in maps
    ]
    return faults, reads


def _survey_maps(dataset, config):
    try:
        samples = dataset.load_data_list()
    except (OSError, AssertionError, UnicodeDecodeError) as error:
        path = dataset.ann_file or dataset.data_prefix['img_path']
        return [Fault(path, 'missing file', f'the data set cannot be read ({str(error).splitlines()[0]})')], []
    classes = dataset.metainfo.get('classes')
    if dataset.label_map:  # the classes of the config are some of these, and maps hold numbers of these
        classes = type(dataset).METAINFO['classes']
    reduced = dataset.reduce_zero_label
    ignored = (0, 255) if reduced else (dataset.ignore_index,)
    labels = Labels(len(classes), int(reduced), ignored) if classes else None
    reads = [
        (map_faults, sample['img_path'], sample['seg_map_path'], labels)
        if 'seg_map_path' in sample
        else (image_faults, sample['img_path'])
        for sample in samples
    ]
    return list(_maps_without_image(dataset, samples)), reads


def _maps_without_image(dataset, samples):
    """Yields a Fault for each map whose image is not there: the data set lists images, and would miss it silently."""
    folder = dataset.data_prefix.get('seg_map_path')
    if dataset.ann_file or not folder:
        return
    listed = {os.path.normpath(sample['seg_map_path']) for sample in samples}
    for path in sorted(Path(folder).rglob(f'*{dataset.seg_map_suffix}')):
        if os.path.normpath(path) not in listed:
            stem = str(path.relative_to(folder))[: -len(dataset.seg_map_suffix)]
            image = Path(dataset.data_prefix['img_path'], stem + dataset.img_suffix)
            yield Fault(str(image), 'missing file', f'no such file; {shown(path)} is its map')


def _survey_classes(dataset, config):
    images, classes = [], dataset.metainfo.get('classes')
    root = dataset.data_prefix.get('img_path', '')
    if dataset.ann_file:
        faults = list_faults(dataset.ann_file, root, classes, images, labelled=dataset.with_label)
    else:
        faults = folder_faults(root, dataset.extensions, classes, images)
    faults = list(faults)
    return faults, [(image_faults, str(path)) for path in images]


SURVEYS = {
    'CocoPanopticDataset': _survey_panoptic,
    'CocoDataset': _survey_coco,
    'BaseSegDataset': _survey_maps,
    'CustomDataset': _survey_classes,
}
