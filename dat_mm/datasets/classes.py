# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Names and colours of Shapes, as the toolboxes want them. Data only, standard library only."""

CLASSES = ('arrow', 'crescent', 'cross', 'disc', 'ring', 'square', 'star', 'triangle')
PALETTE = (
    (228, 87, 86),
    (245, 133, 24),
    (238, 202, 59),
    (84, 162, 75),
    (114, 183, 178),
    (76, 120, 168),
    (178, 121, 162),
    (255, 157, 166),
)

# instances and crops: eight classes
SHAPES_METAINFO = {'classes': CLASSES, 'palette': PALETTE}
# masks: the background is a class too (1), the shapes follow (2 to 9), 0 is unlabelled
SHAPES_SEGMENTATION_METAINFO = {'classes': ('background', *CLASSES), 'palette': ((120, 120, 120), *PALETTE)}
