# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Is everything that a config reads there? Told in one line, before any model is built."""

import os
from difflib import SequenceMatcher
from pathlib import Path

from ..errors import UserError
from .data_root import nodes


def _is_remote(path):
    return '://' in path or path.startswith('petrel')


def _datasets(node):
    """The data sets of a config of one, inside their wrappers."""
    inner = [node[key] for key in ('dataset', 'datasets') if key in node]
    if not inner:
        yield node
    for part in inner:
        for child in part if isinstance(part, (list, tuple)) else [part]:
            yield from _datasets(child)


def _paths(dataset):
    """The files and folders a data set reads, its root first."""
    root = dataset.get('data_root') or ''
    prefix = dataset.get('data_prefix') or dataset.get('split') or {}  # `split`: mmpretrain's ImageNet
    prefixes = prefix.values() if isinstance(prefix, dict) else [prefix]
    parts = [dataset.get('ann_file'), *prefixes]
    for path in (root, *(os.path.join(root, part) for part in parts if part)):
        if path:
            yield os.path.expanduser(path)


def _missing(cfg, phases):
    for phase in phases:
        loader = cfg.get(f'{phase}_dataloader') or {}
        for dataset in _datasets(loader.get('dataset') or {}):
            if str(dataset.get('type', '')).startswith('dat_mm.') or dataset.get('backend_args'):
                continue  # made on first use, or elsewhere than on this disk
            for path in _paths(dataset):
                if not _is_remote(path) and not os.path.exists(path):
                    return path, f'the {phase} data of {cfg.filename}'
    for phase in phases:
        datasets = _datasets((cfg.get(f'{phase}_dataloader') or {}).get('dataset') or {})
        if any(str(dataset.get('type', '')).startswith('dat_mm.') for dataset in datasets):
            continue  # its annotations are made with it
        for evaluator in nodes(cfg.get(f'{phase}_evaluator') or {}):
            path = evaluator.get('ann_file')
            if isinstance(path, str) and not _is_remote(path) and not os.path.exists(path):
                return path, f'the {phase} evaluator of {cfg.filename}'
    return None


def nearest_shapes_config(filename) -> str:
    """The config on the built-in data whose name is most like this one's."""
    stem = Path(filename or '').stem
    for folder in Path(filename or '').resolve().parents:
        found = sorted(folder.glob('shapes/*.py')) + sorted(folder.glob('configs/shapes/*.py'))
        if found:
            best = max(found, key=lambda path: SequenceMatcher(None, path.stem, stem).ratio())
            return os.path.relpath(best)
    return 'one of configs/shapes/'


def check_data(cfg, phases) -> None:
    """Raises, naming the first missing path, unless all the data of these phases is there."""
    missing = _missing(cfg, phases)
    if missing:
        path, what = missing
        raise UserError(
            f'{path} does not exist ({what}): docs/data.md says how to get it and how to name another place; '
            f'{nearest_shapes_config(cfg.filename)} needs no data'
        )


def check_checkpoint(path) -> None:
    """Raises unless a checkpoint that was named is there."""
    if not _is_remote(str(path)) and not Path(path).is_file():
        raise UserError(f'{path}: no such checkpoint')


def check_weights(cfg) -> None:
    """The files that the config starts from."""
    for node in nodes(cfg.model):
        if node.get('type') == 'Pretrained' and node.get('checkpoint'):
            check_checkpoint(node['checkpoint'])
    if cfg.get('load_from'):
        check_checkpoint(cfg.load_from)
