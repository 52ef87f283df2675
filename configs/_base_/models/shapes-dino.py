# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# Two layers each in encoder and decoder, at strides 8, 16 and 32. 256 channels wide, as mmdet's DINO has to be.
_base_ = 'dino.py'

model = dict(
    num_queries=100,
    num_feature_levels=3,
    backbone=dict(arch='datpp-nano', img_size=64, drop_path_rate=0.0, with_cp=False),
    neck=dict(in_channels=[64, 128, 192], num_outs=3),
    encoder=dict(
        num_layers=2,
        layer_cfg=dict(self_attn_cfg=dict(num_levels=3), ffn_cfg=dict(feedforward_channels=512)),
    ),
    decoder=dict(
        num_layers=2,
        layer_cfg=dict(cross_attn_cfg=dict(num_levels=3), ffn_cfg=dict(feedforward_channels=512)),
    ),
    bbox_head=dict(num_classes=8),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=40)),
    test_cfg=dict(max_per_img=30),
)
