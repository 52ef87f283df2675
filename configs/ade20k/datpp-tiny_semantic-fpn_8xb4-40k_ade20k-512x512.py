# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/semantic-fpn.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/ade20k-40k.py',
    '../_base_/runtime/mmseg.py',
]

model = dict(backbone=dict(arch='datpp-tiny', drop_path_rate=0.4), neck=dict(in_channels=[64, 128, 256, 512]))
train_dataloader = dict(batch_size=4)
