# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# Scenes of 160 pixels, the longer side made 128; the background is stuff. Needs panopticapi.
_base_ = 'shapes-instance.py'

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadPanopticAnnotations'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5, direction=['horizontal', 'vertical']),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='LoadPanopticAnnotations'),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(dataset=dict(type='dat_mm.ShapesPanoptic', pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(type='dat_mm.ShapesPanoptic', pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = [
    dict(
        type='CocoPanopticMetric',
        ann_file=_base_.data_root + 'panoptic/val.json',
        seg_prefix=_base_.data_root + 'panoptic/val/',
        nproc=2,
    ),
    dict(type='CocoMetric', ann_file=_base_.data_root + 'annotations/instances_val.json', metric=['bbox', 'segm']),
]
test_evaluator = val_evaluator
