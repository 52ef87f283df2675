# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
_base_ = '../datpp-tiny_32xb128_in1k.py'

model = dict(backbone=dict(kinds=['PD', 'PD' * 2, 'PD' * 9, 'DD'], reduction=[8, 4, 2, 1]))
