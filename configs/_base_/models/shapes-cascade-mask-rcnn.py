# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# As shapes-mask-rcnn.py, with three box heads.
_base_ = 'cascade-mask-rcnn.py'

__heads = _base_.model.roi_head.bbox_head
__rcnn = _base_.model.train_cfg.rcnn
[__head.update(in_channels=64, conv_out_channels=64, fc_out_channels=256, num_classes=8) for __head in __heads]
[__stage.sampler.update(num=32, pos_fraction=0.33) for __stage in __rcnn]

model = dict(
    backbone=dict(arch='datpp-nano', img_size=64, drop_path_rate=0.0, with_cp=False),
    neck=dict(in_channels=[32, 64, 128, 192], out_channels=64, num_outs=4),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[2.5], strides=[4, 8, 16, 32])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64, finest_scale=24, roi_layer=dict(sampling_ratio=1)),
        bbox_head=__heads,
        mask_roi_extractor=dict(out_channels=64, finest_scale=24, roi_layer=dict(sampling_ratio=1)),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64, num_classes=8),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=200, max_per_img=100),
        rcnn=__rcnn,
    ),
    test_cfg=dict(rpn=dict(nms_pre=200, max_per_img=100), rcnn=dict(max_per_img=30)),
)
