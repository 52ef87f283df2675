# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# A classifier of a dark or a light square; TINY_DATA is replaced by the folder of the data.
default_scope = 'mmpretrain'
custom_imports = dict(imports=['dat_mm'], allow_failed_imports=False)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3), clip_grad=dict(max_norm=5.0))
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', interval=1, by_epoch=True),
    logger=dict(type='LoggerHook', interval=1),
)
log_processor = dict(type='LogProcessor', window_size=1, by_epoch=True)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

backbone = dict(type='dat_mm.DAT', arch='dat-nano', img_size=64, drop_path_rate=0.2)
model = dict(
    type='ImageClassifier',
    backbone=backbone,
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=2,
        in_channels=192,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, num_classes=2, mode='original'),
    ),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
data_preprocessor = dict(num_classes=2, mean=[127.0] * 3, std=[60.0] * 3, to_rgb=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='RandomResizedCrop', scale=64),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='ColorJitter', brightness=0.4),
    dict(type='RandomErasing', erase_prob=0.5, mode='rand'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=64), dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CustomDataset', data_root='TINY_DATA', data_prefix='folders', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CustomDataset', data_root='TINY_DATA', data_prefix='folders', pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1,))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=4)
param_scheduler = [dict(type='CosineAnnealingLR', T_max=4, by_epoch=True, convert_to_iter_based=True)]
