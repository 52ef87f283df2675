# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# mmpretrain's ConvNeXt-T under the same recipe, for comparison; its own drop path.
_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet-300e.py',
    '../_base_/runtime/mmpretrain.py',
]

model = dict(
    backbone=dict(_delete_=True, type='ConvNeXt', arch='tiny', drop_path_rate=0.1),
    neck=None,  # the backbone pools
    head=dict(in_channels=768),
    init_cfg=[
        dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.02, bias=0.0),
        dict(type='Constant', layer='LayerNorm', val=1.0, bias=0.0),
    ],
)
