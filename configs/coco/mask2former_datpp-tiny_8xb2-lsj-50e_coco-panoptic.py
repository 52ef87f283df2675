# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/mask2former-panoptic.py',
    '../_base_/datasets/coco-panoptic-lsj.py',
    '../_base_/schedules/coco-mask2former-50e.py',
    '../_base_/runtime/mmdet-panoptic.py',
]

model = dict(backbone=dict(arch='datpp-tiny'))
