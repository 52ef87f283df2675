# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/mask2former.py',
    '../_base_/datasets/coco-instance-lsj.py',
    '../_base_/schedules/coco-mask2former-50e.py',
    '../_base_/runtime/mmdet-iterations.py',
]

model = dict(backbone=dict(arch='datpp-tiny'))
