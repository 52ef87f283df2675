# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# Boxes are evaluated, masks are not.
_base_ = 'coco-instance-ms.py'

val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
