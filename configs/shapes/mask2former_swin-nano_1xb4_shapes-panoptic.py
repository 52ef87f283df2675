# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# Swin of about the size of the nano models, for comparison: 1.75M parameters in the backbone, DAT++ has 1.79M.
_base_ = [
    '../_base_/models/shapes-mask2former-panoptic.py',
    '../_base_/datasets/shapes-panoptic.py',
    '../_base_/schedules/shapes-mask2former.py',
    '../_base_/runtime/shapes-panoptic.py',
]

model = dict(
    backbone=dict(
        _delete_=True,
        type='SwinTransformer',
        embed_dims=28,
        depths=[2, 2, 2, 2],
        num_heads=[2, 4, 7, 14],
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.0,
    ),
    panoptic_head=dict(in_channels=[28, 56, 112, 224]),
)
