# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
_base_ = '../dat-tiny_32xb128_in1k.py'

model = dict(backbone=dict(range_factor=14))
