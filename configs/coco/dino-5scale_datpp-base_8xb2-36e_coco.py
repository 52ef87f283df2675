# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/dino-5scale.py',
    '../_base_/datasets/coco-detr.py',
    '../_base_/schedules/coco-dino-36e.py',
    '../_base_/runtime/mmdet.py',
]

model = dict(backbone=dict(arch='datpp-base'), neck=dict(in_channels=[128, 256, 512, 1024]))
