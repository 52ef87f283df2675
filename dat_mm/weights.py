# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Reads weights without running code from the file, and writes them whole or not at all."""

import os
from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor

from .untrusted import Refused, clean, read


def local_path(source: str | os.PathLike) -> Path:
    """The path of a weights file. A URL is downloaded once, into the folder of torch's own downloads."""
    url = urlparse(str(source))
    if url.scheme not in ('http', 'https'):
        return Path(source)
    path = Path(torch.hub.get_dir(), 'checkpoints', Path(url.path).name)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(str(source), str(path))
    return path


def read_state_dict(source: str | os.PathLike) -> dict[str, Tensor]:
    """Reads the weights of a .pth or .safetensors file onto the CPU. They may lie under 'state_dict' or 'model'.

    Nothing in the file is run. A file that names anything but tensors and containers is refused.
    """
    content = read(local_path(source))
    if isinstance(content, Mapping):
        content = next(
            (content[key] for key in ('state_dict', 'model') if isinstance(content.get(key), Mapping)),
            content,
        )
    if not isinstance(content, Mapping) or not content:
        raise Refused(f'{source} holds a {type(content).__name__} and no weights')
    other = [
        f'{clean(key)} ({type(value).__name__})'
        for key, value in content.items()
        if not isinstance(key, str) or not isinstance(value, Tensor)
    ]
    if other:
        raise Refused(f'{source} holds {len(other)} entries that are not tensors: {", ".join(other[:5])}')
    return {key.removeprefix('module.'): value for key, value in content.items()}


def write_state_dict(state_dict: Mapping[str, Tensor], destination: str | os.PathLike) -> None:
    """Writes weights as .pth (under 'state_dict') or .safetensors. The file appears whole or not at all."""
    path = Path(destination)
    if path.suffix not in ('.pth', '.safetensors'):
        raise ValueError(f'{destination}: the name must end in .pth or .safetensors')
    with written_whole(path, mark=f'.{os.getpid()}') as partial:
        if path.suffix == '.pth':
            torch.save({'state_dict': dict(state_dict)}, partial)
        else:
            from safetensors.torch import save_file

            save_file({key: value.contiguous() for key, value in state_dict.items()}, partial, {'format': 'pt'})


@contextmanager
def written_whole(path: Path, mark: str = ''):
    """Gives the name of a file to write, which takes the place of `path` once it is safe on the disk.

    Where the writing fails, the file is removed and `path` stays as it was. `mark` makes its name one of a kind where
    several processes may write to `path`; without it, what a killed process left is written over by the next.
    """
    partial = path.with_name(f'.{path.name}{mark}')
    try:
        yield partial
        if partial.is_file():
            flush(partial)
            os.replace(partial, path)
            flush(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Has the system write a file, or the names in a folder, to the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # folders cannot be opened everywhere
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
