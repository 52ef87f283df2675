# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# Swin-T under the same recipe, for comparison. Pretrained weights: --cfg-options
# model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=PATH
_base_ = [
    '../_base_/models/mask2former-semantic.py',
    '../_base_/datasets/ade20k-mask2former.py',
    '../_base_/schedules/ade20k-mask2former-160k.py',
    '../_base_/runtime/mmseg.py',
]

model = dict(
    backbone=dict(_delete_=True, type='SwinTransformer', drop_path_rate=0.3, out_indices=(0, 1, 2, 3)),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
)
