# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# For two CPU cores: a quarter of an hour.
_base_ = 'shapes-detection.py'

optim_wrapper = dict(optimizer=dict(lr=4e-4, weight_decay=1e-4), clip_grad=dict(max_norm=0.1), paramwise_cfg=None)
