# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The number format of training: the config says one, the command line may say another, the machine may lack it."""

import torch
from mmengine.device import get_device
from mmengine.logging import print_log

from ..errors import UserError
from .config import nodes

DTYPES = ('float16', 'bfloat16')


def set_precision(cfg, amp: bool = False, amp_dtype: str | None = None) -> None:
    """Turns mixed precision on for `amp` or `amp_dtype`. Without them the config decides, but on the CPU it is off."""
    amp = amp or amp_dtype is not None
    if amp_dtype not in (None, *DTYPES):
        raise UserError(f'--amp-dtype {amp_dtype}: not one of {", ".join(DTYPES)}')
    on_cpu = get_device() == 'cpu'
    if amp and on_cpu:
        raise UserError('--amp needs a GPU and there is none here: without it training runs in float32')
    wrapper = cfg.optim_wrapper
    if amp:
        wrapper.type = 'AmpOptimWrapper'
        wrapper.setdefault('loss_scale', 'dynamic')
        if amp_dtype is not None:
            wrapper.dtype = amp_dtype
    elif wrapper.get('type') == 'AmpOptimWrapper' and on_cpu:
        wrapper.type = 'OptimWrapper'
        print_log('No GPU here: mixed precision of the config is off, training runs in float32', logger='current')
    if wrapper.get('type', 'OptimWrapper') == 'OptimWrapper':
        for key in ('dtype', 'loss_scale', 'use_fp16', 'use_fsdp'):  # arguments of AmpOptimWrapper
            wrapper.pop(key, None)
    elif wrapper.get('dtype') == 'bfloat16':
        # mmcv's RoIAlign has no bfloat16 kernel, torchvision's casts
        for node in nodes(cfg.model):
            if node.get('type') == 'RoIAlign':
                node['use_torchvision'] = True


def _cast(value):
    """Makes float32 of a bfloat16 tensor, and leaves anything else alone."""
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value


def cast_focal_losses(model) -> None:
    """Gives focal losses their inputs in float32: mmcv's has no bfloat16 kernel."""
    for module in model.modules():
        if 'FocalLoss' in type(module).__name__:
            module.register_forward_pre_hook(
                lambda _, args, kwargs: (
                    tuple(_cast(value) for value in args),
                    {key: _cast(value) for key, value in kwargs.items()},
                ),
                with_kwargs=True,
            )
