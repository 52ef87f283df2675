# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Reads checkpoints that may come from anybody: nothing in them is run, and none takes more memory than its size.

A checkpoint is a pickle, which is a program. What it may name is listed here, and what it may call of that checks its
arguments. Training checkpoints of mmengine, whose logs hold arrays, are read whole.
"""

import io
import mmap
import os
import pickle
import pickletools
import stat
import tarfile
import zipfile
from math import prod
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

STATISTICS = ('current', 'max', 'mean', 'min')
_KINDS = {np.dtype(code).str[1:]: np.dtype(code) for code in '?bhilqBHILQefd'}


class Refused(pickle.UnpicklingError):
    """A file asks for something that a checkpoint has no need of."""


class _Placeholder(dict):
    """Stand-in for an object that was saved with the weights, such as a yacs config. Its dict entries are kept."""

    def __init__(self, *args, **kwargs):
        super().__init__()

    def __setstate__(self, state):
        pass


class _Kind:
    """Stand-in for numpy.dtype: a plain number type, named as in 'f8'."""

    def __init__(self, name, *_):
        if name not in _KINDS:
            raise Refused(f'it has an array of {str(name)[:40]!r}, which are no numbers')
        self.dtype = _KINDS[name]

    def __setstate__(self, state):
        if state[1] == '>':
            self.dtype = self.dtype.newbyteorder('>')


class _Array(np.ndarray):
    """An array whose content is in the file. It is pickled as any other."""

    def __setstate__(self, state):
        _, shape, kind, by_columns, content = state
        if not isinstance(kind, _Kind) or not isinstance(content, bytes):
            raise Refused('it has an array that does not hold numbers')
        _check_shape(shape)
        if prod(shape) * kind.dtype.itemsize != len(content):
            raise Refused(f'it has an array of shape {_short(shape)} in {len(content)} bytes')
        super().__setstate__((1, tuple(shape), kind.dtype, bool(by_columns), content))

    def __reduce__(self):
        return self.view(np.ndarray).__reduce__()


def _array(kind, shape, code):
    return np.ndarray.__new__(_Array, (0,), 'b')


def _scalar(kind, content):
    if not isinstance(kind, _Kind) or not isinstance(content, bytes) or len(content) != kind.dtype.itemsize:
        raise Refused('it has a number that is not in the file')
    return np.frombuffer(content, kind.dtype)[0]


def _encoded(text, encoding):
    """Stand-in for codecs.encode, by which older pickles hold bytes."""
    if encoding != 'latin1':
        raise Refused(f'it has bytes in the encoding {encoding!r}')
    return text.encode('latin1')


def _empty():
    """Stand-in for bytes, which older pickles call for bytes of length 0."""
    return b''


def _statistic(owner, name):
    """Stand-in for getattr, by which the logs of mmengine find their four statistics."""
    if name not in STATISTICS:
        raise Refused(f'it asks for the attribute {name!r}')
    return getattr(owner, name, None) if isinstance(owner, type) else None


def _short(value) -> str:
    return str(value)[:60]


def _check_shape(shape) -> None:
    if not all(type(size) is int and size >= 0 for size in shape):
        raise Refused(f'it has the shape {_short(shape)}')


def _rebuilder(name):
    rebuild = getattr(torch._utils, name, None)

    def checked(storage, offset, size, stride, requires_grad=False, hooks=None, *rest):
        """Makes a tensor that is no larger than what the file holds of it."""
        size, stride = tuple(size), tuple(stride)
        _check_shape((*size, *stride, offset))
        dtype = next((value for value in rest if isinstance(value, torch.dtype)), storage.dtype)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        there = storage._untyped_storage.nbytes() // dtype.itemsize
        if prod(size) > there or (prod(size) and last >= there):
            raise Refused(f'it has a tensor of shape {_short(size)}, and {there} numbers for it')
        if name == '_rebuild_tensor':
            return rebuild(storage, offset, size, stride)
        return rebuild(storage, offset, size, stride, bool(requires_grad), {}, *([dtype] if name.endswith('3') else []))

    return checked


def _parameter(data, requires_grad, hooks, state=None):
    if not isinstance(data, torch.Tensor):
        raise Refused(f'it has a parameter that is a {type(data).__name__}')
    return torch._utils._rebuild_parameter(data, bool(requires_grad), {})


def _of_type(rebuild, kind, arguments, state):
    """Stand-in for how tensors with attributes of their own are made: these are left out."""
    if rebuild not in _REBUILDERS:
        raise Refused('it makes a tensor by something else')
    return rebuild(*arguments)


def _size(sizes):
    return torch.Size(sizes)


def _counted(*arguments):
    from collections import Counter

    if any(not isinstance(argument, (dict, list, tuple)) for argument in arguments):
        raise Refused('it counts something')
    return Counter(*arguments)


def _of_sequence(kind):
    def make(*arguments):
        if any(not isinstance(argument, (dict, list, tuple, set, frozenset)) for argument in arguments):
            raise Refused(f'it makes a {kind.__name__} of a {type(arguments[0]).__name__}')
        return kind(*arguments)

    return make


def _ordered(*arguments):
    from collections import OrderedDict

    return OrderedDict(*arguments)


def _device(*arguments):
    return torch.device(*arguments)


def _reconstructed(*_):
    return _Placeholder()


def _history_buffer():
    """The class of mmengine's logs, whose attributes a file may set. Its methods are not in the file."""
    try:
        from mmengine.logging import HistoryBuffer
    except ImportError:
        return _Placeholder
    return HistoryBuffer


_NAMES = ('_rebuild_tensor', '_rebuild_tensor_v2', '_rebuild_tensor_v3')
_REBUILD = {name: _rebuilder(name) for name in _NAMES}
_REBUILDERS = (*_REBUILD.values(), _parameter)

# Names in a file, and what stands for them here. Anything else is refused.
_MEANING = {
    ('_codecs', 'encode'): _encoded,
    ('argparse', 'Namespace'): _Placeholder,
    ('builtins', 'getattr'): _statistic,
    ('builtins', 'bytes'): _empty,
    ('builtins', 'complex'): complex,
    ('builtins', 'dict'): dict,
    ('builtins', 'object'): object,
    ('builtins', 'slice'): slice,
    **{('builtins', kind.__name__): _of_sequence(kind) for kind in (list, tuple, set, frozenset)},
    ('collections', 'Counter'): _counted,
    ('collections', 'OrderedDict'): _ordered,
    ('collections', 'defaultdict'): _Placeholder,
    ('copyreg', '_reconstructor'): _reconstructed,
    ('mmengine.config.config', 'ConfigDict'): _Placeholder,
    ('numpy', 'dtype'): _Kind,
    ('numpy', 'ndarray'): None,
    **{(f'numpy.{core}.multiarray', '_reconstruct'): _array for core in ('core', '_core')},
    **{(f'numpy.{core}.multiarray', 'scalar'): _scalar for core in ('core', '_core')},
    ('torch', 'Size'): _size,
    ('torch', 'Tensor'): None,
    ('torch', 'device'): _device,
    **{('torch._utils', f'_rebuild_parameter{more}'): _parameter for more in ('', '_with_state')},
    ('torch._tensor', '_rebuild_from_type_v2'): _of_type,
    **{('torch._utils', name): rebuild for name, rebuild in _REBUILD.items()},
    ('torch.nn.parameter', 'Parameter'): None,
    ('torch.nn.parameter', 'Buffer'): None,
    ('torch.storage', 'TypedStorage'): SimpleNamespace(dtype=torch.uint8),
    ('torch.storage', 'UntypedStorage'): SimpleNamespace(dtype=torch.uint8),
    ('yacs.config', 'CfgNode'): _Placeholder,
}
_RENAMED = {'__builtin__': 'builtins', 'copy_reg': 'copyreg'}  # torch.save writes the names of Python 2


class _Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        module = _RENAMED.get(module, module)
        if (module, name) == ('mmengine.logging.history_buffer', 'HistoryBuffer'):
            return _history_buffer()
        if (module, name) in _MEANING:
            return _MEANING[module, name]
        if module == 'numpy.dtypes':
            return _Kind
        found = getattr(torch, name, None) if module == 'torch' else None
        if isinstance(found, torch.dtype):
            return found
        if name.endswith('Storage') and isinstance(found, type):  # what a file says about its numbers
            return SimpleNamespace(dtype=found.dtype, _dtype=found.dtype)
        raise Refused(f'it names {module}.{name}, which could run code')


def _load(file, **kwargs):
    return _Unpickler(file, **kwargs).load()


_PICKLE = SimpleNamespace(Unpickler=_Unpickler, load=_load, __name__='dat_mm.untrusted')


def _check_archive(path: Path) -> None:
    """Raises unless a zip file is one as torch writes it: its parts as they are, one after the other."""
    with zipfile.ZipFile(path) as archive:
        _check_parts(archive.infolist(), path.stat().st_size)
        for name in archive.namelist():
            if name.endswith('.pkl'):
                _check_pickle(io.BytesIO(archive.read(name)))


def _check_parts(parts: list[zipfile.ZipInfo], size: int) -> None:
    names = [part.filename for part in parts]
    if any(name.split('/')[-1] == 'constants.pkl' for name in names):
        raise Refused('it is a TorchScript program, which could run code')
    if len(set(names)) < len(names):
        raise Refused('it has a part twice')
    if any(part.compress_type != zipfile.ZIP_STORED or part.file_size != part.compress_size for part in parts):
        raise Refused('it is compressed, and torch writes no compressed files')
    if sum(part.file_size for part in parts) > size:
        raise Refused('its parts are larger than the file')


def _check_pickle(file) -> None:
    """Raises unless what a pickle counts is there: Python makes room for it before it looks."""
    kept = 0
    try:
        for code, argument, _ in pickletools.genops(file):
            if code.name in ('PUT', 'BINPUT', 'LONG_BINPUT'):
                if argument > kept:
                    raise Refused(f'it keeps {kept} objects and numbers one {argument}')
                kept += 1
            elif code.name == 'MEMOIZE':
                kept += 1
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f'its pickle is damaged: {_first_line(error)}') from error


def _check_pickles(path: Path) -> None:
    """Checks the pickles at the beginning of a file in the format that torch wrote before its version 1.6."""
    with path.open('rb') as file:
        if not path.stat().st_size:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for _ in range(5):  # a mark, a version, the machine, the content, the names of the storages
                _check_pickle(content)
                if content.tell() == len(content):
                    return


def check_file(path: Path) -> None:
    """Raises unless a path leads to a file that a checkpoint may be."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise Refused('it is no regular file')
    if path.suffix == '.safetensors':
        return
    if zipfile.is_zipfile(path):
        _check_archive(path)
    elif tarfile.is_tarfile(path):
        raise Refused('it is a tar file, which torch wrote before 2016')
    else:
        _check_pickles(path)


def is_whole(path: str | Path) -> bool:
    """Says whether a checkpoint is neither cut off nor altered: torch keeps a checksum of each part of a file."""
    path = Path(path)
    try:
        check_file(path)
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (
        pickle.UnpicklingError,
        zipfile.BadZipFile,
        OSError,
        EOFError,
        ValueError,
        RuntimeError,
        NotImplementedError,
    ):
        return False


def read(path: str | Path):
    """Reads a .pth or .safetensors file onto the CPU; the tensors of the usual .pth stay on disk until they are used.

    Raises FileNotFoundError, Refused, or ValueError where the content makes no sense.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f'{path}: no such file')
    try:
        check_file(path)
        if path.suffix == '.safetensors':
            from safetensors.torch import load_file

            return load_file(path)
        on_disk = zipfile.is_zipfile(path)
        return torch.load(path, map_location='cpu', pickle_module=_PICKLE, weights_only=False, mmap=on_disk)
    except Refused:
        raise
    except pickle.UnpicklingError as error:
        raise ValueError(_first_line(error)) from None
    except Exception as error:  # what a file of nonsense leads to is anything
        raise ValueError(_first_line(error)) from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
