# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
_base_ = 'coco-dino-12e.py'

param_scheduler = [dict(type='MultiStepLR', by_epoch=True, begin=0, end=36, milestones=[27, 33], gamma=0.1)]
train_cfg = dict(max_epochs=36)
