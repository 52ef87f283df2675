# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The number format of training: the config says one, the command line may say another, the machine may lack it."""

from functools import wraps

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
    """Makes float32 of bfloat16 tensors, in lists too, and leaves anything else alone."""
    if isinstance(value, (list, tuple)):
        return type(value)(map(_cast, value))
    return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value


def cast_focal_losses(model) -> None:
    """Gives focal losses their inputs in float32: mmcv's has no bfloat16 kernel."""
    for module in model.modules():
        if 'FocalLoss' in type(module).__name__:
            module.register_forward_pre_hook(
                lambda _, args, kwargs: (_cast(args), {key: _cast(value) for key, value in kwargs.items()}),
                with_kwargs=True,
            )


def cast_matching_heads(model) -> None:
    """Has heads that match queries with objects find boxes, match and compute losses in float32.

    mmdet adds to boxes in place, so that they would keep bfloat16, which is up to four pixels off in a large image.
    scipy, which matches, takes no bfloat16 at all.
    """
    for module in model.modules():
        if type(getattr(module, 'assigner', None)).__name__ == 'HungarianAssigner':
            if 'DETR' in type(module).__name__ or 'DINO' in type(module).__name__:
                module.forward = _in_float32(module.forward)
            module.loss_by_feat = _in_float32(module.loss_by_feat)


def _in_float32(function):
    """Wraps a function so that it computes in float32, whatever precision is on around it."""

    @wraps(function)
    def run(*args, **kwargs):
        with torch.autocast(get_device(), enabled=False):
            return function(*_cast(args), **{key: _cast(value) for key, value in kwargs.items()})

    return run


class _SampleInFloat32:
    """mmcv's autograd function of multi-scale deformable attention, which takes bfloat16 as float32."""

    def __init__(self, function):
        self.function = function

    def apply(self, value, shapes, starts, locations, weights, step):
        if value.dtype != torch.bfloat16:
            return self.function.apply(value, shapes, starts, locations, weights, step)
        found = self.function.apply(value.float(), shapes, starts, locations.float(), weights.float(), step)
        return found.to(value.dtype)


def cast_multi_scale_sampling() -> None:
    """Has mmcv's multi-scale deformable attention sample in float32 what is bfloat16: it has no such kernel."""
    try:
        from mmcv.ops import multi_scale_deform_attn as ops
    except ImportError:  # mmcv without its compiled ops: no model has this attention
        return
    if not isinstance(ops.MultiScaleDeformableAttnFunction, _SampleInFloat32):
        ops.MultiScaleDeformableAttnFunction = _SampleInFloat32(ops.MultiScaleDeformableAttnFunction)


def cast_for_bfloat16(model) -> None:
    """Has all that lacks bfloat16, or loses by it, run in float32 when the rest of a model trains in bfloat16."""
    cast_focal_losses(model)
    cast_matching_heads(model)
    cast_multi_scale_sampling()
