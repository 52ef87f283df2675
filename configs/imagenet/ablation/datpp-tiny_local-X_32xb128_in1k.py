# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
_base_ = '../datpp-tiny_32xb128_in1k.py'

model = dict(backbone=dict(kinds=['XD', 'XD' * 2, 'XD' * 9, 'DD']))
