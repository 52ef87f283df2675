# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Training checkpoints of mmengine: finding the one to resume, reading it safely, checking that it fits a model."""

import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ..convert import current_key
from ..errors import UserError
from ..weights import written_whole

INTERRUPTED = 'interrupted.pth'  # what a run writes that is asked to stop
_STATISTICS = ('current', 'max', 'mean', 'min')


def _statistic(owner, name):
    """Stand-in for getattr in a checkpoint, which finds the four statistics of a HistoryBuffer and nothing else."""
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise ValueError(f'the checkpoint asks for {name!r} of {owner!r}')
    return getattr(HistoryBuffer, name)


def allow_mmengine_checkpoints() -> None:
    """Lets torch's weights-only loading read the logs that mmengine keeps beside the weights, and nothing else.

    torch >= 2.6 loads weights only by default and refuses these logs. Call this before each load: OneDL's mmengine
    empties the list of allowed classes when it has read a file.
    """
    from mmengine.logging import HistoryBuffer

    if tuple(int(part) for part in torch.__version__.split('.')[:2]) < (2, 6):
        return
    reconstruct, scalar = np.ndarray(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    cores = ('numpy.core.multiarray', 'numpy._core.multiarray')  # numpy 1 and 2: a file may come from either
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            (_statistic, 'builtins.getattr'),
            *((reconstruct, f'{core}._reconstruct') for core in cores),
            *((scalar, f'{core}.scalar') for core in cores),
            np.ndarray,
            np.dtype,
            *(type(np.dtype(kind)) for kind in ('?', 'b', 'h', 'i', 'l', 'q', 'B', 'H', 'I', 'L', 'Q', 'e', 'f', 'd')),
        ]
    )


def open_checkpoint(path: str | Path) -> dict:
    """Reads a checkpoint, whose tensors stay on disk until they are used. A bad file is a UserError of one line."""
    allow_mmengine_checkpoints()
    if not Path(path).is_file():
        raise UserError(f'{path}: no such checkpoint')
    try:
        content = torch.load(path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        if not zipfile.is_zipfile(path) and Path(path).read_bytes()[:1] != b'\x80':
            raise UserError(f'{path} is no checkpoint') from error
        lines = [line.strip() for line in str(error).splitlines() if 'GLOBAL' in line]
        reason = lines[0] if lines else str(error).splitlines()[0]
        raise UserError(
            f'{path} is refused: {reason} (tools/convert_checkpoint.py reads the checkpoints of the DAT authors)'
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise UserError(f'{path} is no checkpoint: {str(error).splitlines()[0]}') from error
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


def is_whole(path: str | Path) -> bool:
    """Says whether a checkpoint is neither cut off nor altered: torch keeps a checksum of each part of a file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, RuntimeError, NotImplementedError):
        return False


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
