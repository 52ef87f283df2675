# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# Swin's schedule, for DAT too: 16 images a step.
_base_ = 'coco-3x.py'

optim_wrapper = dict(optimizer=dict(lr=1e-4))
auto_scale_lr = dict(base_batch_size=16)
