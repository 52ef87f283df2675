# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# Swin-T under its own recipe, for comparison. Pretrained weights: --cfg-options
# model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=PATH
_base_ = [
    '../_base_/models/mask-rcnn.py',
    '../_base_/datasets/coco-instance.py',
    '../_base_/schedules/coco-swin-1x.py',
    '../_base_/runtime/mmdet.py',
]

model = dict(
    backbone=dict(_delete_=True, type='SwinTransformer', drop_path_rate=0.2, out_indices=(0, 1, 2, 3)),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
