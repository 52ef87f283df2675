# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# The quickstart trains this: smaller scenes and masks, larger batches, a higher rate.
# One group of parameters: with a group for each parameter a step of the optimizer took 35 ms, so it takes 26,
# and fused, as the quickstart has it where torch can, 5.
_base_ = 'mask-rcnn_datpp-nano_fpn_1xb4_shapes.py'

__train_pipeline, __test_pipeline = _base_.train_pipeline, _base_.test_pipeline
__train_pipeline[2].update(scale=(112, 112))
__test_pipeline[1].update(scale=(144, 144))  # of 112, 128 and 144 the best on the held-out scenes

model = dict(
    data_preprocessor=dict(pad_size_divisor=16),  # 32 would pad 112 to 128
    # masks of 14 x 14: those of 28 x 28 took a fifth of the training
    roi_head=dict(mask_roi_extractor=dict(roi_layer=dict(output_size=7))),
    train_cfg=dict(rcnn=dict(mask_size=14)),
)
train_pipeline, test_pipeline = __train_pipeline, __test_pipeline
train_dataloader = dict(batch_size=8, dataset=dict(pipeline=__train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=__test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=2.8e-3), paramwise_cfg=None)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=60),
    dict(type='CosineAnnealingLR', eta_min_ratio=0.01, begin=0, end=4, T_max=4, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=4)
auto_scale_lr = dict(base_batch_size=8)
