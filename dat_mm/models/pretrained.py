# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Loads pretrained weights into a backbone, whatever file they come in. What is not loaded is said or raised."""

import os
import re

from torch import nn

from ..convert import convert, is_official, rename_old_keys
from ..weights import read_state_dict
from .base import print_log

_OUTPUT_NORM = re.compile(r'norm\d+\.')  # out_indices decides which of these a model or a file has


def _some(names, n=3):
    names = list(names)
    return ', '.join(names[:n]) + (f' and {len(names) - n} more' if len(names) > n else '')


def fit_tables(model: nn.Module, state_dict: dict, prefix: str = '') -> None:
    """Changes a state dict in place so that it fits the model.

    Keys of earlier versions are renamed. Bias tables of other resolutions are resized, each by the method
    resized(name, value) of its module.
    """
    rename_old_keys(state_dict, prefix)
    for name, module in model.named_modules():
        if not hasattr(module, 'resized'):
            continue
        for key, own in module.named_parameters(recurse=False):
            full = f'{prefix}{name}.{key}'
            if full in state_dict and state_dict[full].shape != own.shape:
                state_dict[full] = module.resized(key, state_dict[full])


def load_pretrained(
    model: nn.Module,
    checkpoint: str | os.PathLike,
    prefix: str | None = None,
    map_location: str = 'cpu',
    strict: bool = True,
) -> None:
    """Loads an official file, a converted one or one of a classifier, detector or segmentor into a backbone.

    Bias tables are resized to the model's resolution. An error with the counts is raised where a tensor of the model is
    not in the file with its shape, or where one of the file has no place in the model. The norms of outputs may differ.
    With strict=False, what fits is loaded, and an error is raised only where nothing does.
    map_location changes nothing and is there because mmengine passes it. Weights are read on the CPU and copied to
    where the model is.
    """
    state_dict = read_state_dict(checkpoint)
    if is_official(state_dict):
        state_dict = convert(state_dict)
    if prefix is None and any(key.startswith('backbone.') for key in state_dict):
        prefix = 'backbone'
    if prefix:
        start = prefix.rstrip('.') + '.'
        inside = {key.removeprefix(start): value for key, value in state_dict.items() if key.startswith(start)}
        if not inside:
            raise ValueError(
                f'{checkpoint}: none of its {len(state_dict)} keys starts with {start!r} ({_some(state_dict)})'
            )
        state_dict = inside

    own = model.state_dict()
    rename_old_keys(state_dict)
    shapes = {key: value.shape for key, value in state_dict.items()}
    fit_tables(model, state_dict)
    resized = [key for key, shape in shapes.items() if state_dict[key].shape != shape]
    fitting = {key: value for key, value in state_dict.items() if key in own and value.shape == own[key].shape}
    missing = [key for key in own if key not in state_dict and not _OUTPUT_NORM.match(key)]
    unexpected = [key for key in state_dict if key not in own and not _OUTPUT_NORM.match(key)]
    mismatched = [
        f'{key} ({tuple(state_dict[key].shape)} in the file, {tuple(own[key].shape)} in the model)'
        for key in own
        if key in state_dict and key not in fitting
    ]
    problems = [
        f'{len(names)} {what}: {_some(names)}'
        for what, names in (
            ('missing', missing),
            ('unexpected', unexpected),
            ('of another shape', mismatched),
        )
        if names
    ]
    counts = f'{checkpoint}: {len(fitting)} of the {len(own)} tensors of the backbone are in the file with their shape'
    if not fitting or (problems and strict):
        hint = ' (strict=False loads what fits)' if fitting else ''
        raise ValueError(f'{counts}{hint}; {"; ".join(problems)}')
    fresh = [key for key in own if key not in fitting]
    model.load_state_dict(fitting, strict=False)
    notes = [counts, *([f'{len(resized)} bias tables resized'] if resized else []), *problems]
    print_log('; '.join([*notes, f'not loaded: {_some(fresh)}' if fresh else 'all loaded']), logger='current')
