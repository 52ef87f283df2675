# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet-300e.py',
    '../_base_/runtime/mmpretrain.py',
]

model = dict(backbone=dict(arch='datpp-tiny', drop_path_rate=0.2), head=dict(in_channels=512))
