# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Training checkpoints of mmengine: finding the one to resume, reading it safely, checking that it fits a model."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from mmengine.dist import barrier, get_rank
from mmengine.fileio import get_local_path

from ..convert import current_key
from ..errors import UserError
from ..untrusted import HISTORY, Refused, is_whole, read
from ..weights import local_path, written_whole

INTERRUPTED = 'interrupted.pth'  # what a run writes that is asked to stop


# this disk, the net, and object stores as mmengine writes them
_PREFIXES = ('', 'http://', 'https://', r'(\S+\:)?s3://', r'(\S+\:)?petrel://')


def read_safely() -> None:
    """Has mmengine read every checkpoint as `open_checkpoint` does, whoever asks it to.

    By itself it runs what is in a file with torch < 2.6, and refuses its own training checkpoints with later ones.
    OneDL's mmengine reads a file that torch refuses once more, and then runs what is in it.
    """
    from mmengine.runner.checkpoint import CheckpointLoader

    CheckpointLoader.register_scheme(prefixes=_PREFIXES, loader=_loader, force=True)


def _loader(filename, map_location=None, **_):
    device = map_location if isinstance(map_location, (str, torch.device)) else 'cpu'
    if filename.startswith(('http://', 'https://')):
        if get_rank() == 0:
            local_path(filename)
        barrier()
        filename = str(local_path(filename))
    if '://' not in filename:
        return open_checkpoint(Path(filename).expanduser(), mapped=False, device=device)
    with get_local_path(filename) as path:
        return open_checkpoint(path, mapped=False, device=device)


def _fill_history(history, state) -> None:
    """Puts the two series of numbers into a HistoryBuffer, one of mmengine's logs. It has its statistics already."""
    series = [state.get(key) for key in ('_log_history', '_count_history')]
    if not all(isinstance(values, np.ndarray) and values.ndim == 1 for values in series):
        raise Refused('it has a malformed HistoryBuffer')
    history._log_history, history._count_history = series
    history.max_length = int(state.get('max_length', history.max_length))


def open_checkpoint(path: str | Path, *, mapped: bool = True, device='cpu') -> dict:
    """Reads a checkpoint with mmengine's logs. A bad file is a UserError of one line.

    Its tensors stay on the disk until they are used; without `mapped`, they are put on `device`.
    """
    from mmengine.logging import HistoryBuffer

    objects = {HISTORY: (HistoryBuffer, _fill_history)}
    try:
        content = read(path, mapped=mapped, device=device, objects=objects)
    except FileNotFoundError:
        raise UserError(f'{path}: no such checkpoint') from None
    if not isinstance(content, dict):
        raise UserError(f'{path} holds a {type(content).__name__} and no weights')
    meta = content.get('meta', {})
    parts = {'meta': meta, 'state_dict': content.get('state_dict', content)}
    if isinstance(meta, dict):
        meta.pop('config', None)  # mmengine runs this text as Python when it resumes
        parts['dataset_meta'] = meta.get('dataset_meta', {})
    for name, part in parts.items():
        if not isinstance(part, dict) or not all(isinstance(key, str) for key in part):
            raise UserError(f'{path} is refused: its {name} is no dict with names as keys')
    return content


def read_meta(path: str | Path) -> dict:
    """Reads what a checkpoint to resume says of its run, such as iteration, epoch and seed."""
    content = open_checkpoint(path)
    meta = content.get('meta')
    if not isinstance(meta, dict) or 'iter' not in meta or 'optimizer' not in content:
        raise UserError(
            f'{path} holds no state of training to resume; to start from its weights: --cfg-options load_from={path}'
        )
    for key in ('iter', 'epoch', 'seed', 'total_batch', 'group'):
        value = meta.get(key)
        if not (type(value) is int and value >= 0) and not (value is None and key not in ('iter', 'epoch')):
            raise UserError(f'{path} is refused: {key} in its meta is not a number from 0 on')
    return meta


def check_fit(model, content: dict, path: str | Path) -> None:
    """Raises unless the checkpoint has every parameter of the model. mmengine would load what fits and go on."""
    weights = {current_key(key.removeprefix('module.')) for key in content.get('state_dict', content)}
    own = [name for name, _ in model.named_parameters()]
    missing = [name for name in own if name not in weights]
    if missing:
        some = ', '.join(missing[:3]) + (', ...' if len(missing) > 3 else '')
        raise UserError(
            f'{path} is not of this model: it lacks {len(missing)} of its {len(own)} parameters ({some}); '
            'tools/convert_checkpoint.py converts the checkpoints of the DAT authors'
        )


def _whole_checkpoints(work_dir: str | Path, warn=None) -> Iterator[Path]:
    """Yields the whole checkpoints of a run: the one that was noted, then the others, the newest first."""
    folder = Path(work_dir)
    found = [path for pattern in ('epoch_*.pth', 'iter_*.pth', INTERRUPTED) for path in folder.glob(pattern)]
    found.sort(key=lambda path: path.stat().st_mtime, reverse=True)
    try:
        note = folder / 'last_checkpoint'
        noted = Path(note.read_text().strip()) if note.is_file() else None
    except (OSError, ValueError):  # unreadable, or not text
        noted = None
    if noted and noted.name:
        # the second place: the folder was moved
        found = [path for path in (noted, folder / noted.name) if path.is_file()][:1] + found
    for path in dict.fromkeys(found):
        if is_whole(path):
            yield path
        elif warn is not None:
            warn(f'{path} is cut off or altered and is passed over')


def latest_checkpoint(work_dir: str | Path, warn=None) -> Path | None:
    """The last whole checkpoint of a run: the one that was noted, or else the newest in the folder.

    `warn` is called with a line about each that is not whole.
    """
    return next(_whole_checkpoints(work_dir, warn), None)


def last_good_checkpoint(work_dir: str | Path) -> Path | None:
    """The last whole checkpoint of a run that has no NaN in it: gradients may spoil weights while losses are finite."""
    return next((path for path in _whole_checkpoints(work_dir) if not _has_nan(open_checkpoint(path))), None)


def _has_nan(content: dict) -> bool:
    weights = (*content.get('state_dict', {}).values(), *content.get('ema_state_dict', {}).values())
    return any(bool(torch.isnan(weight).any()) for weight in weights if weight.is_floating_point())


def note_last(work_dir: str | Path, name: str) -> None:
    """Notes which checkpoint of a run is the last, as mmengine does, whole or not at all."""
    with written_whole(Path(work_dir, 'last_checkpoint')) as partial:
        partial.write_text(str(Path(work_dir, name)))
