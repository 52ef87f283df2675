# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# The recipe of DAT for segmentation was never released: this is DAT++'s, and the drop path, ImageNet's, is a guess.
_base_ = [
    '../_base_/models/semantic-fpn.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/ade20k-40k.py',
    '../_base_/runtime/mmseg.py',
]

model = dict(backbone=dict(arch='dat-base', drop_path_rate=0.5), neck=dict(in_channels=[128, 256, 512, 1024]))
train_dataloader = dict(batch_size=4)
