# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/cascade-mask-rcnn.py',
    '../_base_/datasets/coco-instance-ms.py',
    '../_base_/schedules/coco-3x.py',
    '../_base_/runtime/mmdet.py',
]

model = dict(backbone=dict(arch='datpp-tiny', drop_path_rate=0.1), neck=dict(in_channels=[64, 128, 256, 512]))
