# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# The recipe of DAT for segmentation was never released: this is DAT++'s, and the drop path, ImageNet's, is a guess.
_base_ = [
    '../_base_/models/semantic-fpn.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/ade20k-40k.py',
    '../_base_/runtime/mmseg.py',
]

model = dict(backbone=dict(arch='dat-small', drop_path_rate=0.3), neck=dict(in_channels=[96, 192, 384, 768]))
train_dataloader = dict(batch_size=4)
