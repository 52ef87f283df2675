# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""From a file to its content. The three formats are the zip of torch.save, its format before 1.6, and safetensors."""

import io
import os
import stat
import struct
import sys
import zlib
from contextlib import contextmanager
from pathlib import Path

import torch

from .archive import START, read_directory, take
from .limits import Allowance, Refused, check_tree, clean
from .pickles import Unpickler

# the first two pickles of the format before the zip: a number that marks it, and its version
_LEGACY = b'\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.'
_ALIGNED = 64  # bytes to which torch.save aligns storages
_HEADER = 32  # bytes that a byte in the header of safetensors may become
_BAD = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


@contextmanager
def _opened(path: Path):
    """Opens a regular file. Reading anything else, such as a device or a pipe, may never end."""
    if not path.exists():
        raise FileNotFoundError(f'{path}: no such file')
    if not stat.S_ISREG(path.stat().st_mode):
        raise Refused('it is a folder' if path.is_dir() else 'it is no regular file')
    with path.open('rb') as file:
        yield file, os.fstat(file.fileno()).st_size


def _read_numbers(file, nbytes: int) -> torch.Tensor:
    numbers = torch.empty(nbytes, dtype=torch.uint8)
    if nbytes and file.readinto(numbers.numpy()) != nbytes:
        raise Refused('it is cut off')
    return numbers


class _Zipped:
    """The storages of a zip file, each read or mapped when it is first asked for."""

    def __init__(self, file, size, parts, root, mapped, device):
        self.file, self.parts, self.root, self.device, self.found = file, parts, root, device, {}
        self.mapping = torch.UntypedStorage.from_file(str(file.name), False, size) if mapped else None

    def __call__(self, key, dtype, count):
        part = self.parts.get(f'{self.root}data/{key}')
        if part is None or part.size != count * dtype.itemsize:
            raise Refused(f'it has no {count} elements of storage {clean(key)}')
        if key not in self.found:
            if self.mapping is not None and part.size and not part.start % _ALIGNED:
                self.found[key] = self.mapping[part.start : part.start + part.size]
            else:
                self.file.seek(part.start)
                self.found[key] = _read_numbers(self.file, part.size).to(self.device).untyped_storage()
        return self.found[key]


def _read_zip(file, size, allowance, objects, mapped, device):
    parts = read_directory(file, size, allowance)
    roots = [name.removesuffix('data.pkl') for name in parts if name.split('/', 1)[-1] == 'data.pkl']
    if len(roots) != 1:
        raise Refused(f'it has {len(roots)} files data.pkl, and torch.save writes one')
    root = roots[0]

    def read(name):
        file.seek(parts[name].start)
        return take(file, parts[name].size, size)

    if f'{root}byteorder' in parts and read(f'{root}byteorder') != sys.byteorder.encode():
        raise Refused('its numbers have another byte order')
    storages = _Zipped(file, size, parts, root, mapped, device)
    allowance.spend(parts[f'{root}data.pkl'].size)
    pickled = read(f'{root}data.pkl')
    return Unpickler(io.BytesIO(pickled), len(pickled), allowance, storages, objects).load()


class _Appended:
    """The storages of the format before the zip, which follow the pickle: they are filled once it is read."""

    def __init__(self, size):
        self.left, self.found = size, {}

    def __call__(self, key, dtype, count):
        nbytes = count * dtype.itemsize
        if key not in self.found:
            self.left -= nbytes
            if self.left < 0:
                raise Refused('it names more numbers than are in it')
            self.found[key] = torch.empty(nbytes, dtype=torch.uint8), count
        numbers, known = self.found[key]
        if known != count or len(numbers) != nbytes:
            raise Refused(f'it has no {count} elements of storage {clean(key)}')
        return numbers.untyped_storage()

    def fill(self, file, keys):
        if type(keys) is not list or sorted(keys) != sorted(self.found):
            raise Refused('it names other storages than are in it')
        for key in keys:
            numbers, count = self.found[key]
            if int.from_bytes(file.read(8), 'little') != count:
                raise Refused(f'it has no {count} elements of storage {clean(key)}')
            if len(numbers) and file.readinto(numbers.numpy()) != len(numbers):
                raise Refused('it is cut off')


def _read_legacy(file, size, allowance, objects):
    file.seek(len(_LEGACY))
    storages = _Appended(size)
    pickles = Unpickler(file, size - len(_LEGACY), allowance, storages, objects)
    if pickles.load().get('little_endian') is not (sys.byteorder == 'little'):
        raise Refused('its numbers have another byte order')
    content = pickles.load()
    storages.fill(file, pickles.load())
    return content


def _read_safetensors(path, file, allowance):
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    allowance.spend(_HEADER * int.from_bytes(file.read(8), 'little'))
    try:
        return load_file(path)
    except SafetensorError as error:
        raise RuntimeError(str(error)) from error


def _read(path, mapped, device, objects):
    with _opened(path) as (file, size):
        allowance = Allowance(size)
        if path.suffix == '.safetensors':
            return _read_safetensors(path, file, allowance)
        start = file.read(len(_LEGACY))
        if start.startswith(START):
            content = _read_zip(file, size, allowance, objects, mapped, device)
        elif start == _LEGACY:
            content = _read_legacy(file, size, allowance, objects)
        else:
            raise Refused('it is not a checkpoint, torch.save writes no file that begins so')
        check_tree(content, allowance, leaves=[type(make()) for make, _ in (objects or {}).values()])
        return content


def read(path: str | os.PathLike, *, mapped: bool = True, device='cpu', objects=None):
    """Reads a .pth or .safetensors file and returns its content. Nothing in the file is run.

    A bad file raises `Refused`, with one line that has the path and the rule. With `mapped`, the numbers of a zip file
    stay on the disk until they are used; without, its tensors are put on `device`. `objects` are classes to make beside
    tensors, containers and numbers, see `Unpickler`; of known ones that are not wanted, the dict entries are kept.
    """
    try:
        return _read(Path(path), mapped, device, objects)
    except FileNotFoundError:
        raise
    except Refused as error:
        raise Refused(f'{path} is refused: {error}') from None
    except OSError as error:
        raise Refused(f'{path} cannot be read: {error.strerror or error}') from error
    except _BAD as error:
        raise Refused(f'{path} is not a checkpoint: its content makes no sense, {clean(repr(error))}') from error


def is_whole(path: str | os.PathLike) -> bool:
    """Says whether a checkpoint is neither cut off nor altered: torch keeps a checksum of each part of a file."""
    try:
        with _opened(Path(path)) as (file, size):
            parts = read_directory(file, size, Allowance(size)).values()
            return all(_checksum(file, part) == part.crc for part in parts)
    except _BAD:
        return False


def _checksum(file, part, chunk=1 << 20):
    file.seek(part.start)
    value = 0
    for start in range(0, part.size, chunk):
        value = zlib.crc32(file.read(min(chunk, part.size - start)), value)
    return value
