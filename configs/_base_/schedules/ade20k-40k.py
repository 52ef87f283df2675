# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# Semantic FPN: 32 images a step; the paper's 80k iterations are those of half the batch.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=1e-4),
    # No decay on norms and on position bias tables; neighborhood tables are decayed.
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={'position_bias': dict(decay_mult=0.0)}),
)
param_scheduler = [dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=40000)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=40000, val_interval=4000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=32)
