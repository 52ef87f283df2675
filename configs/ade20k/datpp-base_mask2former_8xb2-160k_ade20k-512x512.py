# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/mask2former-semantic.py',
    '../_base_/datasets/ade20k-mask2former.py',
    '../_base_/schedules/ade20k-mask2former-160k.py',
    '../_base_/runtime/mmseg.py',
]

model = dict(backbone=dict(arch='datpp-base'), decode_head=dict(in_channels=[128, 256, 512, 1024]))
