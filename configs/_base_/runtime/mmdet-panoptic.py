# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
_base_ = 'mmdet-iterations.py'

default_hooks = dict(checkpoint=dict(save_best='coco_panoptic/PQ'))
visualizer = dict(type='dat_mm.PanopticVisualizer')
