# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# Swin-T under the same recipe, for comparison. Pretrained weights: --cfg-options
# model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=PATH
_base_ = [
    '../_base_/models/deformable-detr.py',
    '../_base_/datasets/coco-detr.py',
    '../_base_/schedules/coco-deformable-detr-50e.py',
    '../_base_/runtime/mmdet.py',
]

model = dict(
    backbone=dict(_delete_=True, type='SwinTransformer', drop_path_rate=0.2, out_indices=(1, 2, 3), with_cp=True),
    neck=dict(in_channels=[192, 384, 768]),
)
