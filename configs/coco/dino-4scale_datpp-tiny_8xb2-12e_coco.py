# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/dino.py',
    '../_base_/datasets/coco-detr.py',
    '../_base_/schedules/coco-dino-12e.py',
    '../_base_/runtime/mmdet.py',
]

model = dict(backbone=dict(arch='datpp-tiny'))
