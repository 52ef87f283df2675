# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
_base_ = '../dat-nano_1xb32_shapes.py'

model = dict(backbone=dict(position_bias='fixed'))
