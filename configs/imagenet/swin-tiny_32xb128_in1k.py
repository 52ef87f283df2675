# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# mmpretrain's Swin-T under the same recipe, for comparison; its own drop path.
_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet-300e.py',
    '../_base_/runtime/mmpretrain.py',
]

model = dict(
    backbone=dict(_delete_=True, type='SwinTransformer', arch='tiny', img_size=224, drop_path_rate=0.2),
    head=dict(in_channels=768),
    init_cfg=[
        dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.0),
        dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
    ],
)
