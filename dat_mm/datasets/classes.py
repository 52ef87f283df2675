# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Names and colours of Shapes, as the toolboxes want them. Data only, standard library only."""

CLASSES = ('arrow', 'crescent', 'cross', 'disc', 'ring', 'square', 'star', 'triangle')
PALETTE = (
    (31, 119, 180),
    (255, 127, 14),
    (44, 160, 44),
    (214, 39, 40),
    (148, 103, 189),
    (255, 221, 51),
    (227, 119, 194),
    (23, 190, 207),
)

# instances and crops: eight classes
SHAPES_METAINFO = {'classes': CLASSES, 'palette': PALETTE}
# masks: the background is a class too (1), the shapes follow (2 to 9), 0 is unlabelled: the crowds
SHAPES_SEGMENTATION_METAINFO = {'classes': ('background', *CLASSES), 'palette': ((120, 120, 120), *PALETTE)}
