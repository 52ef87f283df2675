# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# Narrow heads, few proposals, one sample a bin, and anchors of 10 to 80 pixels: objects are of 8 to 100.
_base_ = 'mask-rcnn.py'

model = dict(
    backbone=dict(arch='datpp-nano', img_size=64, drop_path_rate=0.0, with_cp=False),
    neck=dict(in_channels=[32, 64, 128, 192], out_channels=64, num_outs=4),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[2.5], strides=[4, 8, 16, 32])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, finest_scale=24, roi_layer=dict(sampling_ratio=1)),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=8),
        mask_roi_extractor=dict(out_channels=64, finest_scale=24, roi_layer=dict(sampling_ratio=1)),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64, num_classes=8),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=dict(sampler=dict(num=32, pos_fraction=0.33)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100), rcnn=dict(max_per_img=30)),
)
