# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/mask2former-semantic.py',
    '../_base_/datasets/ade20k-mask2former.py',
    '../_base_/schedules/ade20k-mask2former-160k.py',
    '../_base_/runtime/mmseg.py',
]

model = dict(backbone=dict(arch='dat-tiny'), decode_head=dict(in_channels=[96, 192, 384, 768]))
