# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
_base_ = [
    '../_base_/models/shapes-mask2former.py',
    '../_base_/datasets/shapes-instance.py',
    '../_base_/schedules/shapes-mask2former.py',
    '../_base_/runtime/mmdet.py',
]
