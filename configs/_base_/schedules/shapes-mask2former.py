# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# For two CPU cores: a quarter of an hour.
_base_ = 'shapes-detection.py'

optim_wrapper = dict(optimizer=dict(lr=1e-3), clip_grad=dict(max_norm=0.1))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=0.01,
        by_epoch=True,
        begin=0,
        end=6,
        T_max=6,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=6, val_interval=3)
