# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# groups and key_stride are deduced: with these the parameters and FLOPs are the published ones.
_base_ = '../dat-tiny_32xb128_in1k.py'

model = dict(backbone=dict(kinds=['LS', 'LD', 'LD' * 3, 'LD'], groups=[1, 2, 3, 6], key_stride=[1, 2, 1, 1]))
