# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Checks, before any model is built, that everything a config reads is there. What is missing is told in one line."""

import importlib.util
import os
from difflib import SequenceMatcher
from pathlib import Path

from ..datasets.survey import leaf_datasets
from ..errors import UserError
from .config import nodes


def _is_remote(path):
    """Says whether a path leads elsewhere than to this disk."""
    return '://' in path or path.startswith('petrel')


def _paths(dataset):
    """Yields the files and folders that a data set reads, its root first."""
    root = dataset.get('data_root') or ''
    prefix = dataset.get('data_prefix') or dataset.get('split') or {}  # `split`: mmpretrain's ImageNet
    prefixes = prefix.values() if isinstance(prefix, dict) else [prefix]
    parts = [dataset.get('ann_file'), *prefixes]
    for path in (root, *(os.path.join(root, part) for part in parts if part)):
        if path:
            yield os.path.expanduser(path)


def _missing(cfg, phases):
    """Finds the first path that is not there; returns (path, what it is for), or None."""
    for phase in phases:
        loader = cfg.get(f'{phase}_dataloader') or {}
        for dataset in leaf_datasets(loader.get('dataset') or {}):
            if str(dataset.get('type', '')).startswith('dat_mm.') or dataset.get('backend_args'):
                continue  # made on first use, or elsewhere than on this disk
            for path in _paths(dataset):
                if not _is_remote(path) and not os.path.exists(path):
                    return path, f'the {phase} data of {cfg.filename}'
    for phase in phases:
        datasets = leaf_datasets((cfg.get(f'{phase}_dataloader') or {}).get('dataset') or {})
        if any(str(dataset.get('type', '')).startswith('dat_mm.') for dataset in datasets):
            continue  # its annotations are made with it
        for evaluator in nodes(cfg.get(f'{phase}_evaluator') or {}):
            for path in (evaluator.get('ann_file'), evaluator.get('seg_prefix')):
                if isinstance(path, str) and not _is_remote(path) and not os.path.exists(path):
                    return path, f'the {phase} evaluator of {cfg.filename}'
    return None


def nearest_shapes_config(filename) -> str:
    """Finds the config on the built-in data whose name is most like that of another config."""
    stem = Path(filename or '').stem
    for folder in Path(filename or '').resolve().parents:
        found = sorted(folder.glob('shapes/*.py')) + sorted(folder.glob('configs/shapes/*.py'))
        if found:
            best = max(found, key=lambda path: SequenceMatcher(None, path.stem, stem).ratio())
            return os.path.relpath(best)
    return 'one of configs/shapes/'


def check_data(cfg, phases) -> None:
    """Raises, with the first missing path, unless all data of these phases is there."""
    missing = _missing(cfg, phases)
    if missing:
        path, what = missing
        raise UserError(
            f'{path} does not exist ({what}): docs/data.md says how to get it and how to name another place; '
            f'{nearest_shapes_config(cfg.filename)} needs no data'
        )


def check_packages(cfg, phases) -> None:
    """Raises where the data or the metric of these phases needs panopticapi and it is not installed."""
    parts = [cfg.get(f'{phase}_{part}') or {} for phase in phases for part in ('dataloader', 'evaluator')]
    types = [str(node.get('type', '')) for part in parts for node in nodes(part)]
    wanted = next((name for name in types if 'Panoptic' in name), None)
    if wanted and importlib.util.find_spec('panopticapi') is None:
        raise UserError(
            f'{cfg.filename}: {wanted} needs panopticapi, which is not installed: '
            'pip install --no-deps panopticapi-lite (docs/data.md)'
        )


def check_checkpoint(path) -> None:
    """Raises unless the file of a checkpoint is there; one that is elsewhere than on this disk is not looked for."""
    if not _is_remote(str(path)) and not Path(path).is_file():
        raise UserError(f'{path}: no such checkpoint')


def check_weights(cfg) -> None:
    """Raises unless the checkpoints that a config starts from are there."""
    for node in nodes(cfg.model):
        if node.get('type') == 'Pretrained' and node.get('checkpoint'):
            check_checkpoint(node['checkpoint'])
    if cfg.get('load_from'):
        check_checkpoint(cfg.load_from)
