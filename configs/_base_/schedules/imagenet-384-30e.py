# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# Fine-tuning at 384, from the whole classifier trained at 224. 24 images on each of 32 GPUs are 768 a step.
_base_ = 'imagenet-300e.py'

optim_wrapper = dict(optimizer=dict(lr=2e-5 * 768 / 512, weight_decay=1e-8))
param_scheduler = [
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=2e-7 / 2e-5,
        by_epoch=True,
        begin=0,
        end=30,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(max_epochs=30)
auto_scale_lr = dict(base_batch_size=768)
