# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/shapes-classifier.py',
    '../_base_/datasets/shapes-classification.py',
    '../_base_/schedules/shapes-classification.py',
    '../_base_/runtime/mmpretrain.py',
]

model = dict(backbone=dict(arch='dat-nano'))
