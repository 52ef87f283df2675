# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# Swin-T under the same recipe, for comparison. Pretrained weights: --cfg-options
# model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=PATH
_base_ = [
    '../_base_/models/mask2former.py',
    '../_base_/datasets/coco-instance-lsj.py',
    '../_base_/schedules/coco-mask2former-50e.py',
    '../_base_/runtime/mmdet-iterations.py',
]

model = dict(
    backbone=dict(_delete_=True, type='SwinTransformer', drop_path_rate=0.3, out_indices=(0, 1, 2, 3), with_cp=True),
    panoptic_head=dict(in_channels=[96, 192, 384, 768]),
)
