# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
_base_ = 'classifier.py'

model = dict(
    data_preprocessor=dict(num_classes=8),
    # The bias tables are those of 64 pixels, for scenes too: a classifier's weights fit as they are.
    backbone=dict(arch='datpp-nano', img_size=64, drop_path_rate=0.0),
    head=dict(num_classes=8, in_channels=192, topk=(1,)),
    train_cfg=dict(_delete_=True),
)
