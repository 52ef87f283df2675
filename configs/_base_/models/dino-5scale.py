# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# Five levels: all four stages and one more, of half the size.
_base_ = 'dino.py'

model = dict(
    num_feature_levels=5,
    backbone=dict(out_indices=(0, 1, 2, 3)),
    neck=dict(in_channels=[64, 128, 256, 512], num_outs=5),
    encoder=dict(layer_cfg=dict(self_attn_cfg=dict(num_levels=5))),
    decoder=dict(layer_cfg=dict(cross_attn_cfg=dict(num_levels=5))),
)
