# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/shapes-dino.py',
    '../_base_/datasets/shapes-detection.py',
    '../_base_/schedules/shapes-detr.py',
    '../_base_/runtime/mmdet.py',
]
