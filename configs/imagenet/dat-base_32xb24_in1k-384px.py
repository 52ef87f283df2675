# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# Start from the 224 classifier, head included: --cfg-options load_from=PATH (bias tables are resized)
_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet-384.py',
    '../_base_/schedules/imagenet-384-30e.py',
    '../_base_/runtime/mmpretrain.py',
]

model = dict(
    backbone=dict(arch='dat-base', img_size=384, window_size=12, drop_path_rate=0.5),
    head=dict(in_channels=1024),
)
optim_wrapper = dict(optimizer=dict(lr=2e-6 * 768 / 512), clip_grad=dict(max_norm=1.0))
__cosine = _base_.param_scheduler[0]
__cosine.update(eta_min_ratio=1e-7 / 2e-6)
param_scheduler = [__cosine]
