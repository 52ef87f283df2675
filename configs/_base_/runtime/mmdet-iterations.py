# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# For schedules that are counted in iterations.
_base_ = 'mmdet.py'

default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=5000),
    logger=dict(log_metric_by_epoch=False),
)
log_processor = dict(by_epoch=False)
