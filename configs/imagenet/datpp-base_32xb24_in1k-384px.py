# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# Start from the 224 classifier, head included: --cfg-options load_from=PATH
_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet-384.py',
    '../_base_/schedules/imagenet-384-30e.py',
    '../_base_/runtime/mmpretrain.py',
]

# The bias tables keep the size of 224: they are sampled more finely.
model = dict(backbone=dict(arch='datpp-base', drop_path_rate=0.6), head=dict(in_channels=1024))

# The published test at 384 does not crop.
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(384, 384), backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
