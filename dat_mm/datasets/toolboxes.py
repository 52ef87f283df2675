# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Config types that draw Shapes on first use and read it with a toolbox's own dataset class.

`dict(type='dat_mm.ShapesDetection', split='val', pipeline=...)` is all that a config needs, whichever program runs it.
The types are functions, so that a toolbox is imported only when its own is called.
"""

from mmengine.logging import print_log

from ..registry import DATASETS
from .classes import SHAPES_METAINFO, SHAPES_PANOPTIC_METAINFO, SHAPES_SEGMENTATION_METAINFO


def _prepare(split, data_root, make, lazy_init):
    """Check the split, and draw the scenes unless they are there."""
    from .shapes import SPLITS, ensure_shapes
    from .store import read_marker

    if split not in SPLITS:
        raise ValueError(f'split={split!r} is not one of {SPLITS}')
    if not lazy_init:  # with lazy_init the caller only wants the names of the classes
        if read_marker(data_root) is None:
            print_log(f'making the Shapes data set in {data_root}, once: this takes seconds', 'current')
        ensure_shapes(data_root, **(make or {}))


@DATASETS.register_module()
def ShapesDetection(split='train', data_root='data/shapes', make=None, lazy_init=False, **settings):
    """Shapes as mmdet's CocoDataset. `make` holds arguments of `ensure_shapes`, `settings` those of CocoDataset."""
    from mmdet.datasets import CocoDataset

    _prepare(split, data_root, make, lazy_init)
    defaults = {
        'ann_file': f'annotations/instances_{split}.json',
        'data_prefix': {'img': f'images/{split}'},
        'metainfo': SHAPES_METAINFO,
    }
    return CocoDataset(data_root=data_root, lazy_init=lazy_init, **{**defaults, **settings})


@DATASETS.register_module()
def ShapesPanoptic(split='train', data_root='data/shapes', make=None, lazy_init=False, **settings):
    """Shapes as mmdet's CocoPanopticDataset, with the background as stuff; its annotations are made on first use."""
    from mmdet.datasets import CocoPanopticDataset

    from .shapes import ensure_panoptic

    _prepare(split, data_root, make, lazy_init)
    if not lazy_init:
        ensure_panoptic(data_root)
    defaults = {
        'ann_file': f'panoptic/{split}.json',
        'data_prefix': {'img': f'images/{split}', 'seg': f'panoptic/{split}'},
        'metainfo': SHAPES_PANOPTIC_METAINFO,
    }
    return CocoPanopticDataset(data_root=data_root, lazy_init=lazy_init, **{**defaults, **settings})


@DATASETS.register_module()
def ShapesSegmentation(split='train', data_root='data/shapes', make=None, lazy_init=False, **settings):
    """Shapes as mmseg's BaseSegDataset. 0 in a mask is ignored; the background is the first of nine classes."""
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
    """The crops of Shapes as mmpretrain's CustomDataset."""
    from mmpretrain.datasets import CustomDataset

    _prepare(split, data_root, make, lazy_init)
    defaults = {'data_prefix': f'imagenet/{split}', 'metainfo': SHAPES_METAINFO}
    return CustomDataset(data_root=data_root, lazy_init=lazy_init, **{**defaults, **settings})


# A toolbox may ask the type of a dataset for its classes before there is a dataset.
ShapesDetection.METAINFO = ShapesClassification.METAINFO = SHAPES_METAINFO
ShapesPanoptic.METAINFO = SHAPES_PANOPTIC_METAINFO
ShapesSegmentation.METAINFO = SHAPES_SEGMENTATION_METAINFO
