# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
_base_ = 'mask2former.py'

param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=160000)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=160000, val_interval=5000)
