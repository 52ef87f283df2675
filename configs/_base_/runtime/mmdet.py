# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
custom_imports = dict(imports=['dat_mm'], allow_failed_imports=False)
default_scope = 'mmdet'
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=3, save_best='coco/bbox_mAP', rule='greater'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'),
)
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='DetLocalVisualizer', vis_backends=vis_backends)
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)
log_level = 'INFO'
load_from = None
resume = False
skip_bad_samples = 0  # different ones that are left out and told; with 0, the first ends the run
randomness = dict(seed=None, deterministic=False)
hang_timeout = 600  # seconds without an iteration after which a run is ended, with the stacks of its threads; 0: never
skip_nonfinite_losses = 0  # iterations that may be skipped because their loss is NaN or infinite, before the run ends
