# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What one option changes in many places of a config."""

import os
from collections import Counter
from collections.abc import Iterator

PHASES = ('train', 'val', 'test')


def nodes(value) -> Iterator[dict]:
    """All dicts inside a config, itself first."""
    if isinstance(value, dict):
        yield value
    if isinstance(value, (dict, list, tuple)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from nodes(inner)


def _moved(path: str, old: str, new: str) -> str:
    """A path below old, below new; any other as it is."""
    bare = old.rstrip('/')
    if path.rstrip('/') == bare:
        return new
    return os.path.join(new, path[len(bare) :].lstrip('/')) if path.startswith(bare + '/') else path


def set_data_root(cfg, root: str, old: str | None = None) -> None:
    """Moves every data set and evaluator of a Config, and its own `data_root`, from `old` to `root`.

    A text config has its paths written out by the time it is read, so that the option data_root=... alone reaches no
    data set. `old` is by default the root that most of the data sets share; one that was given another stays there.
    """
    parts = [
        cfg[f'{phase}_{part}'] for part in ('dataloader', 'evaluator') for phase in PHASES if f'{phase}_{part}' in cfg
    ]
    if old is None:
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
