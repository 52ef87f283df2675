# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Configs of the three toolboxes that train in a second, on data made here."""

import json
from pathlib import Path

import numpy as np
import pytest

HEADER = """
default_scope = '{scope}'
custom_imports = dict(imports=['dat_mm'], allow_failed_imports=False)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3), clip_grad=dict(max_norm=5.0))
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', interval=INTERVAL, by_epoch=BY_EPOCH),
    logger=dict(type='LoggerHook', interval=1),
)
log_processor = dict(type='LogProcessor', window_size=1, by_epoch=BY_EPOCH)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
"""

CLASSIFIER = """
backbone = dict(type='dat_mm.DAT', arch='dat-nano', img_size=64, drop_path_rate=0.2)
model = dict(
    type='ImageClassifier',
    backbone=backbone,
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=2, in_channels=192, loss=dict(type='LabelSmoothLoss',
              label_smooth_val=0.1, num_classes=2, mode='original')),
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
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='CustomDataset', data_root='{root}', data_prefix='folders', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=4, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CustomDataset', data_root='{root}', data_prefix='folders', pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='Accuracy', topk=(1,))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=4)
param_scheduler = [dict(type='CosineAnnealingLR', T_max=4, by_epoch=True, convert_to_iter_based=True)]
"""

DETECTOR = """
model = dict(
    type='RetinaNet',
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[127.0] * 3, std=[60.0] * 3, bgr_to_rgb=True,
                           pad_size_divisor=32),
    backbone=dict(type='dat_mm.DAT', arch='dat-nano', img_size=64, out_indices=(1, 2, 3)),
    neck=dict(type='FPN', in_channels=[64, 128, 192], out_channels=32, start_level=0, add_extra_convs='on_output',
              num_outs=5),
    bbox_head=dict(
        type='RetinaHead', num_classes=2, in_channels=32, stacked_convs=1, feat_channels=32,
        anchor_generator=dict(type='AnchorGenerator', octave_base_scale=4, scales_per_octave=3, ratios=[0.5, 1.0, 2.0],
                              strides=[8, 16, 32, 64, 128]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True), loss_bbox=dict(type='L1Loss'),
    ),
    train_cfg=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0,
                                 ignore_iof_thr=-1),
                   sampler=dict(type='PseudoSampler'), allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5),
                  max_per_img=20),
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
data = dict(type='CocoDataset', data_root='{root}', data_prefix=dict(img='images/'), ann_file='boxes.json',
            metainfo=dict(classes=('dark', 'light')))
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'), dataset=dict(pipeline=train_pipeline, **data),
)
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(pipeline=test_pipeline, test_mode=True, **data),
)
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='CocoMetric', ann_file='{root}/boxes.json', metric='bbox')
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=3)
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=5)]
visualizer = dict(type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
"""

SEGMENTOR = """
crop_size = (64, 64)
data_preprocessor = dict(type='SegDataPreProcessor', mean=[127.0] * 3, std=[60.0] * 3, bgr_to_rgb=True, size=crop_size,
                         pad_val=0, seg_pad_val=255)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=data_preprocessor,
    backbone=dict(type='dat_mm.DAT', arch='dat-nano', img_size=64, out_indices=(0, 1, 2, 3)),
    neck=dict(type='FPN', in_channels=[32, 64, 128, 192], out_channels=32, num_outs=4),
    decode_head=dict(type='FPNHead', in_channels=[32] * 4, in_index=[0, 1, 2, 3], feature_strides=[4, 8, 16, 32],
                     channels=32, dropout_ratio=0.1, num_classes=2, norm_cfg=dict(type='SyncBN', requires_grad=True),
                     loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False)),
    train_cfg=dict(), test_cfg=dict(mode='whole'),
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
data = dict(type='BaseSegDataset', data_root='{root}', data_prefix=dict(img_path='images', seg_map_path='masks'),
            img_suffix='.png', seg_map_suffix='.png',
            metainfo=dict(classes=('dark', 'light'), palette=[[200, 0, 0], [0, 200, 0]]))
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(pipeline=train_pipeline, **data),
)
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(pipeline=test_pipeline, **data),
)
test_dataloader = val_dataloader
val_evaluator = test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
train_cfg = dict(type='IterBasedTrainLoop', max_iters=9, val_interval=3)
param_scheduler = [dict(type='PolyLR', power=1.0, begin=0, end=9, by_epoch=False)]
visualizer = dict(type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')])
"""


def _write_data(root: Path, count: int = 6) -> None:
    """Pictures with a dark or a light square: as folders, boxes and masks."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for folder in ('images', 'masks', 'folders/dark', 'folders/light'):
        (root / folder).mkdir(parents=True)
    images, annotations = [], []
    for i in range(count):
        height, width = (72, 96) if i % 2 else (96, 72)
        picture = rng.integers(80, 170, (height, width, 3), np.uint8)
        light, x, y = i % 2, *(int(v) for v in rng.integers(4, 30, 2))
        picture[y : y + 32, x : x + 32] = 230 if light else 20
        mask = np.full((height, width), 255, np.uint8)
        mask[y : y + 32, x : x + 32] = light
        mask[:4] = 1 - light
        Image.fromarray(picture).save(root / f'images/{i}.png')
        Image.fromarray(picture).save(root / f'folders/{("dark", "light")[light]}/{i}.png')
        Image.fromarray(mask).save(root / f'masks/{i}.png')
        images.append(dict(id=i, file_name=f'{i}.png', height=height, width=width))
        annotations.append(dict(id=i + 1, image_id=i, category_id=light, bbox=[x, y, 32, 32], area=1024, iscrowd=0))
    categories = [dict(id=0, name='dark'), dict(id=1, name='light')]
    (root / 'boxes.json').write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))


@pytest.fixture(scope='session')
def tiny_data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    _write_data(root)
    return root


@pytest.fixture
def tiny_config(tiny_data, tmp_path):
    """Writes tmp_path/{mmpretrain,mmdet,mmseg}.py and returns its path."""

    def write(scope):
        body = dict(mmpretrain=CLASSIFIER, mmdet=DETECTOR, mmseg=SEGMENTOR)[scope]
        by_epoch = scope != 'mmseg'
        text = HEADER.replace('BY_EPOCH', str(by_epoch)).replace('INTERVAL', '1' if by_epoch else '3') + body
        path = tmp_path / f'{scope}.py'
        path.write_text(text.replace('{scope}', scope).replace('{root}', str(tiny_data)))
        return path

    return write
