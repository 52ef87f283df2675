# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
custom_imports = dict(imports=['dat_mm'], allow_failed_imports=False)
default_scope = 'mmseg'
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook',
        by_epoch=False,
        interval=4000,
        max_keep_ckpts=3,
        save_best='mIoU',
        rule='greater',
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='SegVisualizationHook'),
)
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends)
log_processor = dict(by_epoch=False)
log_level = 'INFO'
load_from = None
resume = False
skip_bad_samples = 0  # different ones that are left out and told; with 0, the first ends the run
randomness = dict(seed=None, deterministic=False)
hang_timeout = 600  # seconds without an iteration after which a run is ended, with the stacks of its threads; 0: never
skip_nonfinite_losses = 0  # iterations that may be skipped because their loss is NaN or infinite, before the run ends
tta_model = dict(type='SegTTAModel')
