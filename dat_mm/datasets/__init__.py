# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Shapes, the built-in synthetic data set, and miniature copies of COCO, ADE20K and ImageNet."""

from importlib import import_module

from .classes import CLASSES, PALETTE, SHAPES_METAINFO, SHAPES_PANOPTIC_METAINFO, SHAPES_SEGMENTATION_METAINFO

_PUBLIC = {
    'ShapesClassification': '.toolboxes',
    'ShapesDetection': '.toolboxes',
    'ShapesPanoptic': '.toolboxes',
    'ShapesSegmentation': '.toolboxes',
    'ensure_shapes': '.shapes',
    'write_mini_ade20k': '.miniature',
    'write_mini_coco': '.miniature',
    'write_mini_imagenet': '.miniature',
}
__all__ = [
    'CLASSES',
    'PALETTE',
    'SHAPES_METAINFO',
    'SHAPES_PANOPTIC_METAINFO',
    'SHAPES_SEGMENTATION_METAINFO',
    *_PUBLIC,
]


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(_PUBLIC[name], __name__), name)
