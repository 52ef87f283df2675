# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Training checkpoints of mmengine: finding the one to resume, reading it safely, checking that it fits a model."""

from collections.abc import Iterator
from pathlib import Path

import torch

from ..convert import current_key
from ..errors import UserError
from ..untrusted import Refused, is_whole, read
from ..weights import written_whole

INTERRUPTED = 'interrupted.pth'  # what a run writes that is asked to stop


def read_safely() -> None:
    """Has mmengine read every checkpoint on this disk as `untrusted.read` does, whoever asks it to.

    By itself it runs what is in a file with torch < 2.6, and refuses its own training checkpoints with later ones.
    """
    from mmengine.runner.checkpoint import CheckpointLoader

    CheckpointLoader.register_scheme(prefixes='', loader=_loader, force=True)


def _loader(filename, map_location=None, **_):
    return _moved(open_checkpoint(filename), map_location if isinstance(map_location, (str, torch.device)) else 'cpu')


def _moved(content, place):
    """Copies tensors from the file into memory."""
    if isinstance(content, torch.Tensor):
        return content.to(place, copy=True)
    if isinstance(content, (dict, list, tuple)):
        values = [_moved(value, place) for value in (content.values() if isinstance(content, dict) else content)]
        return type(content)(zip(content, values, strict=True) if isinstance(content, dict) else values)
    return content


def open_checkpoint(path: str | Path) -> dict:
    """Reads a checkpoint, whose tensors stay on disk until they are used. A bad file is a UserError of one line."""
    if not Path(path).exists():
        raise UserError(f'{path}: no such checkpoint')
    try:
        content = read(path)
    except Refused as error:
        raise UserError(f'{path} is refused: {error}') from error
    except ValueError as error:
        raise UserError(f'{path} is no checkpoint: {error}') from error
    if not isinstance(content, dict):
        raise UserError(f'{path} holds a {type(content).__name__} and no weights')
    return content


def read_meta(path: str | Path) -> dict:
    """Reads what a checkpoint to resume says of its run, such as iteration, epoch and seed."""
    content = open_checkpoint(path)
    if not isinstance(content.get('meta'), dict) or 'iter' not in content['meta'] or 'optimizer' not in content:
        raise UserError(
            f'{path} holds no state of training to resume; to start from its weights: --cfg-options load_from={path}'
        )
    return content['meta']


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
        noted = Path((folder / 'last_checkpoint').read_text().strip())
    except (OSError, ValueError):  # not there, or not text
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
