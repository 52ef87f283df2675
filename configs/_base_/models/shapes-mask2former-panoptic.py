# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
_base_ = 'shapes-mask2former.py'

model = dict(
    data_preprocessor=dict(pad_seg=True, seg_pad_value=255),
    panoptic_head=dict(num_stuff_classes=1, loss_cls=dict(class_weight=[1.0] * 9 + [0.1])),
    panoptic_fusion_head=dict(num_stuff_classes=1),
    test_cfg=dict(panoptic_on=True),
)
