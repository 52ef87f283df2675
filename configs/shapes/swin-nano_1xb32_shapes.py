# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# Swin of about the size of the nano models, for comparison: 1.75M parameters in the backbone, DAT++ has 1.79M.
_base_ = [
    '../_base_/models/shapes-classifier.py',
    '../_base_/datasets/shapes-classification.py',
    '../_base_/schedules/shapes-classification.py',
    '../_base_/runtime/mmpretrain.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        arch=dict(embed_dims=28, depths=[2, 2, 2, 2], num_heads=[2, 4, 7, 14]),
        img_size=64,
        drop_path_rate=0.0,
        pad_small_map=True,
    ),
    head=dict(in_channels=224),
)
