# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Names and colours of the classes of Shapes, as the toolboxes want them. Imports nothing."""

CLASSES = ('arrow', 'crescent', 'cross', 'disc', 'ring', 'square', 'star', 'triangle')
# a list: mmdet takes a tuple for one colour
PALETTE = [
    (31, 119, 180),
    (255, 127, 14),
    (44, 160, 44),
    (214, 39, 40),
    (148, 103, 189),
    (255, 221, 51),
    (227, 119, 194),
    (23, 190, 207),
]

# For detection and classification: eight classes.
SHAPES_METAINFO = {'classes': CLASSES, 'palette': PALETTE}
# For segmentation: in the files 0 is unlabelled (crowds), 1 the background, 2 to 9 the shapes.
SHAPES_SEGMENTATION_METAINFO = {'classes': ('background', *CLASSES), 'palette': [(120, 120, 120), *PALETTE]}
# For panoptic segmentation: the shapes are things, the background is stuff.
SHAPES_PANOPTIC_METAINFO = {
    'classes': (*CLASSES, 'background'),
    'thing_classes': CLASSES,
    'stuff_classes': ('background',),
    'palette': [*PALETTE, (120, 120, 120)],
}
