# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# 16 images a step; a tenth of the rate for the backbone; no decay on norms, position bias tables and embeddings.
# The rules add up, where mmengine's own constructor lets the longest key decide alone.
optim_wrapper = dict(
    type='OptimWrapper',
    constructor='dat_mm.JointRulesOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    clip_grad=dict(max_norm=0.01),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys={
            'backbone': dict(lr_mult=0.1),
            'position_bias': dict(decay_mult=0.0),
            'query_embed': dict(decay_mult=0.0),
            'query_feat': dict(decay_mult=0.0),
            'level_embed': dict(decay_mult=0.0),
        },
    ),
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=16)
