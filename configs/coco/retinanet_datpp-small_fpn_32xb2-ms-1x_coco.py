# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/retinanet.py',
    '../_base_/datasets/coco-detection-ms.py',
    '../_base_/schedules/coco-1x.py',
    '../_base_/runtime/mmdet.py',
]

model = dict(backbone=dict(arch='datpp-small', drop_path_rate=0.1), neck=dict(in_channels=[192, 384, 768]))
optim_wrapper = dict(optimizer=dict(lr=2e-4))
