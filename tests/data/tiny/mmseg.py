# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# A segmentor of dark and light squares; TINY_DATA is replaced by the folder of the data.
default_scope = 'mmseg'
custom_imports = dict(imports=['dat_mm'], allow_failed_imports=False)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3), clip_grad=dict(max_norm=5.0))
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', interval=3, by_epoch=False),
    logger=dict(type='LoggerHook', interval=1),
)
log_processor = dict(type='LogProcessor', window_size=1, by_epoch=False)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

crop_size = (64, 64)
data_preprocessor = dict(
    type='SegDataPreProcessor',
    mean=[127.0] * 3,
    std=[60.0] * 3,
    bgr_to_rgb=True,
    size=crop_size,
    pad_val=0,
    seg_pad_val=255,
)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=data_preprocessor,
    backbone=dict(type='dat_mm.DAT', arch='dat-nano', img_size=64, out_indices=(0, 1, 2, 3)),
    neck=dict(type='FPN', in_channels=[32, 64, 128, 192], out_channels=32, num_outs=4),
    decode_head=dict(
        type='FPNHead',
        in_channels=[32] * 4,
        in_index=[0, 1, 2, 3],
        feature_strides=[4, 8, 16, 32],
        channels=32,
        dropout_ratio=0.1,
        num_classes=2,
        norm_cfg=dict(type='SyncBN', requires_grad=True),
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(96, 64), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
data = dict(
    type='BaseSegDataset',
    data_root='TINY_DATA',
    data_prefix=dict(img_path='images', seg_map_path='masks'),
    img_suffix='.png',
    seg_map_suffix='.png',
    metainfo=dict(classes=('dark', 'light'), palette=[[200, 0, 0], [0, 200, 0]]),
)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(pipeline=train_pipeline, **data),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(pipeline=test_pipeline, **data),
)
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
train_cfg = dict(type='IterBasedTrainLoop', max_iters=9, val_interval=3)
param_scheduler = [dict(type='PolyLR', power=1.0, begin=0, end=9, by_epoch=False)]
visualizer = dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
