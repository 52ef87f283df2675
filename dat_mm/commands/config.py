# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Reading a config, with what the command line changes in it."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.logging import print_log

from ..errors import UserError

PHASES = ('train', 'val', 'test')
# Keys that a config may lack and a user may well set: no line is printed about them.
OPTIONAL_KEYS = {
    *('activation_checkpointing', 'auto_scale_lr', 'compile', 'custom_hooks', 'data_root', 'env_cfg', 'load_from'),
    *('experiment_name', 'find_unused_parameters', 'hang_timeout', 'randomness', 'resume', 'skip_nonfinite_losses'),
    *('skip_bad_objects', 'skip_bad_samples', 'sync_bn', 'vis_backends', 'work_dir'),
}


def nodes(value) -> Iterator[dict]:
    """Yields every dict inside a config, from the outermost inwards."""
    if isinstance(value, dict):
        yield value
    if isinstance(value, (dict, list, tuple)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from nodes(inner)


def parse_options(options) -> dict:
    """Turns ['a.b=1', 'c=x'] into {'a.b': 1, 'c': 'x'}, with the values read as the toolboxes read them."""
    parsed = {}
    for option in options or ():
        key, equals, value = option.partition('=')
        if not (key and equals):
            raise UserError(f'--cfg-options {option}: not of the form key=value')
        try:
            parsed[key] = DictAction._parse_iterable(value)
        except (AssertionError, ValueError) as error:
            raise UserError(f'--cfg-options {option}: {error}') from error
    return parsed


def load_config(path, options=()) -> Config:
    """Reads a config and merges the options into it; `data_root=PATH` moves all its data sets."""
    if not Path(path).is_file():
        raise UserError(f'{path}: no such config file')
    if Path(path).suffix not in ('.py', '.json', '.yaml', '.yml'):
        raise UserError(f'{path} is no config: the name must end in .py, .json, .yaml or .yml')
    cfg = Config.fromfile(path)
    options = parse_options(options)
    for key in {option.split('.')[0] for option in options}:
        if key not in cfg and key not in OPTIONAL_KEYS:
            print_log(f'--cfg-options: {path} has no {key!r}, it is added', logger='current')
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, IndexError, AssertionError) as error:
        raise UserError(f'--cfg-options {" ".join(options)}: {error}') from error
    if 'data_root' in options:
        try:
            set_data_root(cfg, options['data_root'])
        except ValueError as error:
            raise UserError(f'--cfg-options data_root={options["data_root"]}: {error}') from error
    return cfg


def _moved(path: str, old: str, new: str) -> str:
    """Moves a path that is below `old` to the same place below `new`, and leaves any other alone."""
    bare = old.rstrip('/')
    if path.rstrip('/') == bare:
        return new
    return os.path.join(new, path[len(bare) :].lstrip('/')) if path.startswith(bare + '/') else path


def set_data_root(cfg, root: str) -> None:
    """Moves the data sets and evaluators of a config, and its own `data_root`, to `root`.

    A config that was read has its paths written out, so that changing `data_root` alone would reach no data set. What
    moves are the paths below the root that most of the data sets share; a data set with another root stays there.
    """
    parts = [
        cfg[f'{phase}_{part}'] for part in ('dataloader', 'evaluator') for phase in PHASES if f'{phase}_{part}' in cfg
    ]
    roots = Counter(node['data_root'] for part in parts for node in nodes(part) if node.get('data_root'))
    if not roots:
        raise ValueError(f'{cfg.filename}: no data set has a data_root, so that data_root={root!r} moves nothing')
    old = roots.most_common(1)[0][0]
    root = os.fspath(root)
    if old.endswith('/') and not root.endswith('/'):
        root += '/'
    for part in parts:
        for node in nodes(part):
            for key in ('data_root', 'ann_file', 'seg_prefix'):
                if isinstance(node.get(key), str):
                    node[key] = _moved(node[key], old, root)
    cfg.data_root = root
