# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# The recipe of DAT for detection was never released: this is Swin's, and the drop path, ImageNet's, is a guess.
_base_ = [
    '../_base_/models/retinanet.py',
    '../_base_/datasets/coco-detection.py',
    '../_base_/schedules/coco-swin-1x.py',
    '../_base_/runtime/mmdet.py',
]

model = dict(backbone=dict(arch='dat-tiny', drop_path_rate=0.2), neck=dict(in_channels=[192, 384, 768]))
