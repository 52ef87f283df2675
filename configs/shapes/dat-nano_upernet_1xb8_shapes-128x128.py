# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/shapes-upernet.py',
    '../_base_/datasets/shapes-segmentation.py',
    '../_base_/schedules/shapes-segmentation.py',
    '../_base_/runtime/mmseg.py',
]

model = dict(backbone=dict(arch='dat-nano'))
