# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/shapes-mask2former-panoptic.py',
    '../_base_/datasets/shapes-panoptic.py',
    '../_base_/schedules/shapes-mask2former.py',
    '../_base_/runtime/shapes-panoptic.py',
]

model = dict(backbone=dict(arch='dat-nano'))
