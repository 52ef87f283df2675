# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# The same training with parameters, gradients and the optimizer's state divided among the processes (FSDP).
_base_ = 'datpp-base_32xb128_in1k.py'

strategy = dict(type='ShardedStrategy')
optim_wrapper = dict(use_fsdp=True)
