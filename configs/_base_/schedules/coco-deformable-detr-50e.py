# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# 32 images a step; a tenth of the rate for the backbone and for what says where the heads sample.
_base_ = 'coco-dino-12e.py'

optim_wrapper = dict(
    optimizer=dict(lr=2e-4),
    paramwise_cfg=dict(custom_keys=dict(sampling_offsets=dict(lr_mult=0.1), reference_points=dict(lr_mult=0.1))),
)
param_scheduler = [dict(type='MultiStepLR', by_epoch=True, begin=0, end=50, milestones=[40], gamma=0.1)]
train_cfg = dict(max_epochs=50)
auto_scale_lr = dict(base_batch_size=32)
