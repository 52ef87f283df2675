# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# DAT-B has a longer warm-up, a lower rate and a tighter clip than the rest.
_base_ = 'imagenet-300e.py'

optim_wrapper = dict(optimizer=dict(lr=4e-4 * 4096 / 512), clip_grad=dict(max_norm=1.0))
__warmup, __cosine = _base_.param_scheduler
__warmup.update(start_factor=5e-7 / 4e-4, end=50)
__cosine.update(eta_min_ratio=5e-6 / 4e-4)
param_scheduler = [__warmup, __cosine]
