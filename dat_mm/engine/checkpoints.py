# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Checkpoints of mmengine: which one to go on from, and reading them with torch's weights-only unpickler."""

from functools import cache
from pathlib import Path

import numpy as np
import torch

from .errors import UserError

_STATISTICS = ('current', 'max', 'mean', 'min')


def _statistic(owner, name):
    """Stands for getattr in a checkpoint, where HistoryBuffer names its four statistics by it, and does no more."""
    from mmengine.logging import HistoryBuffer

    if owner is not HistoryBuffer or name not in _STATISTICS:
        raise ValueError(f'the checkpoint asks for {name!r} of {owner!r}')
    return getattr(HistoryBuffer, name)


@cache
def allow_mmengine_checkpoints() -> None:
    """torch >= 2.6 loads weights only and refuses the logs that mmengine keeps beside them: allow these, no more."""
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


def read_meta(path: str | Path) -> dict:
    """The 'meta' of a checkpoint of training, without reading its tensors."""
    allow_mmengine_checkpoints()
    try:
        checkpoint = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
        meta = checkpoint['meta']
    except Exception as error:
        raise UserError(
            f'{path} is no checkpoint of a training run to resume: {str(error).splitlines()[0]} '
            '(weights alone are given with --cfg-options load_from=PATH)'
        ) from error
    return meta


def latest_checkpoint(work_dir: str | Path) -> Path | None:
    """The one mmengine noted as the last, or where that is gone the newest in the folder."""
    folder = Path(work_dir)
    note = folder / 'last_checkpoint'
    if note.is_file():
        noted = Path(note.read_text().strip())
        for path in (noted, folder / noted.name):  # the second: the folder was moved
            if path.is_file():
                return path
    found = [path for pattern in ('epoch_*.pth', 'iter_*.pth') for path in folder.glob(pattern)]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)
