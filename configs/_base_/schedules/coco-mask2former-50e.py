# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# Evaluated every 5,000 iterations, and at the end.
_base_ = 'mask2former.py'

param_scheduler = [
    dict(type='MultiStepLR', by_epoch=False, begin=0, end=368750, milestones=[327778, 355092], gamma=0.1)
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=368750, val_interval=5000, dynamic_intervals=[(365001, 368750)])
