# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""mmdet's visualizer for panoptic segmentation, which fails on a picture in which a model has found no segment."""

import numpy as np

from ..registry import VISUALIZERS


@VISUALIZERS.register_module()
def PanopticVisualizer(**settings):
    """mmdet's DetLocalVisualizer, with its arguments; it draws a picture without segments as it is."""
    from mmdet.visualization import DetLocalVisualizer

    class Visualizer(DetLocalVisualizer):
        def _draw_panoptic_seg(self, image, panoptic_seg, classes, palette):
            if not (np.asarray(panoptic_seg.sem_seg[0]) != len(classes)).any():
                return image
            return super()._draw_panoptic_seg(image, panoptic_seg, classes, palette)

    return Visualizer.get_instance(**settings)  # where hooks look for it
