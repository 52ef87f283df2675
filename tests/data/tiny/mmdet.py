# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# A detector of dark and light squares; TINY_DATA is replaced by the folder of the data.
default_scope = 'mmdet'
custom_imports = dict(imports=['dat_mm'], allow_failed_imports=False)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3), clip_grad=dict(max_norm=5.0))
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=True),
    logger=dict(type='LoggerHook', interval=1),
)
log_processor = dict(type='LogProcessor', window_size=1, by_epoch=True)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

model = dict(
    type='RetinaNet',
    data_preprocessor=dict(
        type='DetDataPreprocessor', mean=[127.0] * 3, std=[60.0] * 3, bgr_to_rgb=True, pad_size_divisor=32
    ),
    backbone=dict(type='dat_mm.DAT', arch='dat-nano', img_size=64, out_indices=(1, 2, 3)),
    neck=dict(
        type='FPN', in_channels=[64, 128, 192], out_channels=32, start_level=0, add_extra_convs='on_output', num_outs=5
    ),
    bbox_head=dict(
        type='RetinaHead',
        num_classes=2,
        in_channels=32,
        stacked_convs=1,
        feat_channels=32,
        anchor_generator=dict(
            type='AnchorGenerator',
            octave_base_scale=4,
            scales_per_octave=3,
            ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64, 128],
        ),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True),
        loss_bbox=dict(type='L1Loss'),
    ),
    train_cfg=dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
        sampler=dict(type='PseudoSampler'),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    ),
    test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomChoiceResize', scales=[(64, 64), (80, 96)], keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]
data = dict(
    type='CocoDataset',
    data_root='TINY_DATA',
    data_prefix=dict(img='images/'),
    ann_file='boxes.json',
    metainfo=dict(classes=('dark', 'light')),
)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(pipeline=train_pipeline, **data),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(pipeline=test_pipeline, test_mode=True, **data),
)
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='CocoMetric', ann_file='TINY_DATA/boxes.json', metric='bbox')
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3)
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=5)]
visualizer = dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
