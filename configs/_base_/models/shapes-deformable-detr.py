# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# Two layers each in encoder and decoder, at strides 8, 16 and 32. 256 channels wide, as mmdet's two stages have to be.
_base_ = 'deformable-detr.py'

model = dict(
    num_queries=100,
    num_feature_levels=3,
    backbone=dict(arch='datpp-nano', img_size=64, drop_path_rate=0.0, with_cp=False),
    neck=dict(in_channels=[64, 128, 192], num_outs=3),
    encoder=dict(
        num_layers=2,
        layer_cfg=dict(
            self_attn_cfg=dict(num_levels=3, dropout=0.0), ffn_cfg=dict(feedforward_channels=512, ffn_drop=0.0)
        ),
    ),
    decoder=dict(
        num_layers=2,
        layer_cfg=dict(
            self_attn_cfg=dict(dropout=0.0),
            cross_attn_cfg=dict(num_levels=3, dropout=0.0),
            ffn_cfg=dict(feedforward_channels=512, ffn_drop=0.0),
        ),
    ),
    bbox_head=dict(num_classes=8),
    test_cfg=dict(max_per_img=30),
)
