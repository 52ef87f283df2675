# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
_base_ = 'upernet.py'

model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(arch='datpp-nano', img_size=64, drop_path_rate=0.0),
    decode_head=dict(in_channels=[32, 64, 128, 192], channels=64, num_classes=9),
    auxiliary_head=dict(in_channels=128, channels=32, num_classes=9),
)
