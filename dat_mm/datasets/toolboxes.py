# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The toolboxes' own dataset classes over Shapes, as config types that make the scenes on first use.

`dict(type='dat_mm.ShapesDetection', split='val', pipeline=...)` is all a config needs, whichever program runs
it. They are functions, because a toolbox is imported when one is called; they return the toolbox's own class.
"""

from mmengine.logging import print_log

from ..registry import DATASETS
from .classes import SHAPES_METAINFO, SHAPES_SEGMENTATION_METAINFO


def _prepare(split, data_root, make, lazy_init):
    from .shapes import SPLITS, ensure_shapes
    from .store import read_marker

    if split not in SPLITS:
        raise ValueError(f'split={split!r} is not one of {SPLITS}')
    if not lazy_init:  # lazy_init: somebody only wants the names of the classes
        if read_marker(data_root) is None:
            print_log(f'making the Shapes data set in {data_root}, once: this takes seconds', 'current')
        ensure_shapes(data_root, **(make or {}))


@DATASETS.register_module()
def ShapesDetection(split='train', data_root='data/shapes', make=None, lazy_init=False, **settings):
    """mmdet's CocoDataset; `make` are arguments of `ensure_shapes`, `settings` those of CocoDataset."""
    from mmdet.datasets import CocoDataset

    _prepare(split, data_root, make, lazy_init)
    defaults = {
        'ann_file': f'annotations/instances_{split}.json',
        'data_prefix': {'img': f'images/{split}'},
        'metainfo': SHAPES_METAINFO,
    }
    return CocoDataset(data_root=data_root, lazy_init=lazy_init, **{**defaults, **settings})


@DATASETS.register_module()
def ShapesSegmentation(split='train', data_root='data/shapes', make=None, lazy_init=False, **settings):
    """mmseg's BaseSegDataset; 0 in a mask is ignored, the background is the first of nine classes."""
    from mmseg.datasets import BaseSegDataset

    _prepare(split, data_root, make, lazy_init)
    defaults = {
        'data_prefix': {'img_path': f'images/{split}', 'seg_map_path': f'masks/{split}'},
        'metainfo': SHAPES_SEGMENTATION_METAINFO,
        'reduce_zero_label': True,
    }
    return BaseSegDataset(data_root=data_root, lazy_init=lazy_init, **{**defaults, **settings})


@DATASETS.register_module()
def ShapesClassification(split='train', data_root='data/shapes', make=None, lazy_init=False, **settings):
    """mmpretrain's CustomDataset over the crops."""
    from mmpretrain.datasets import CustomDataset

    _prepare(split, data_root, make, lazy_init)
    defaults = {'data_prefix': f'imagenet/{split}', 'metainfo': SHAPES_METAINFO}
    return CustomDataset(data_root=data_root, lazy_init=lazy_init, **{**defaults, **settings})


# where a toolbox asks the type of a dataset for its classes, before there is a dataset
ShapesDetection.METAINFO = ShapesClassification.METAINFO = SHAPES_METAINFO
ShapesSegmentation.METAINFO = SHAPES_SEGMENTATION_METAINFO
