# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# A narrow head on all four stages, with anchors of 10 to 127 pixels: objects are of 8 to 100.
_base_ = 'retinanet.py'

model = dict(
    backbone=dict(arch='datpp-nano', img_size=64, drop_path_rate=0.0, out_indices=(0, 1, 2, 3), with_cp=False),
    neck=dict(in_channels=[32, 64, 128, 192], out_channels=64, add_extra_convs=False, num_outs=4),
    bbox_head=dict(
        num_classes=8,
        in_channels=64,
        stacked_convs=2,
        feat_channels=64,
        anchor_generator=dict(octave_base_scale=2.5, strides=[4, 8, 16, 32]),
    ),
    test_cfg=dict(nms_pre=300, max_per_img=30),
)
