# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The names that a checkpoint may hold, and what each of them makes. Arguments are checked before anything is made."""

import re
from collections import Counter, OrderedDict
from collections.abc import Callable
from math import prod
from typing import NamedTuple

import numpy as np
import torch

from .limits import SCALARS, Allowance, Refused, check_key

_TENSOR = 512  # bytes that a tensor costs beside its numbers
_ITEM = 64  # bytes that an item costs in a copied container
_DIMENSIONS = 32
_STATISTICS = ('current', 'max', 'mean', 'min')
_NUMBERS = re.compile('[biufc][0-9]{1,2}')


class Name(NamedTuple):
    """Stand-in for a class or function that a pickle names.

    `call` is called with the allowance and the arguments in the pickle, `new` without, and `dtype` is of a storage.
    """

    name: str
    call: Callable | None = None
    new: Callable | None = None
    dtype: torch.dtype | None = None


class Storage(NamedTuple):
    """The bytes of a storage, as numbers of a type."""

    data: torch.UntypedStorage
    dtype: torch.dtype


def _demand(condition, what):
    if not condition:
        raise Refused(f'it has {what}')


def _are_sizes(values):
    return (
        type(values) is tuple
        and len(values) <= _DIMENSIONS
        and all(type(value) is int and 0 <= value < 1 << 48 for value in values)
    )


def _tensor(allowance: Allowance, storage, offset, size, stride, dtype=None):
    """Makes a tensor, which must lie inside its storage."""
    _demand(type(storage) is Storage, 'a tensor without a storage')
    dtype = storage.dtype if dtype is None else dtype
    _demand(
        isinstance(dtype, torch.dtype) and type(offset) is int and _are_sizes(size) and _are_sizes(stride),
        'a tensor of a malformed shape',
    )
    _demand(len(size) == len(stride) and 0 <= offset < 1 << 48, 'a tensor of a malformed shape')
    count = prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) if count else -1
    _demand((last + 1) * dtype.itemsize <= storage.data.nbytes(), 'a tensor that lies outside its storage')
    allowance.spend(_TENSOR + count * dtype.itemsize)
    if not count:
        return torch.empty(size, dtype=dtype)
    return torch.empty(0, dtype=dtype, device=storage.data.device).set_(storage.data, offset, size, stride)


def _tensor_v2(allowance, storage, offset, size, stride, requires_grad, hooks, metadata=None):
    _demand(not metadata, 'a tensor with metadata')
    return _tensor(allowance, storage, offset, size, stride)


def _tensor_v3(allowance, storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None):
    _demand(not metadata, 'a tensor with metadata')
    return _tensor(allowance, storage, offset, size, stride, dtype)


def _parameter(allowance, tensor, requires_grad, hooks, state=None):
    _demand(type(tensor) is torch.Tensor, 'a parameter that is no tensor')
    differentiable = tensor.is_floating_point() or tensor.is_complex()
    return torch.nn.Parameter(tensor, requires_grad is True and differentiable)


def _of_type(allowance, rebuild, kind, arguments, state):
    """A tensor with attributes of its own, which are left out."""
    _demand(type(rebuild) is Name and rebuild.call in _REBUILD.values(), 'a tensor that is made by something else')
    _demand(type(arguments) is tuple, 'a malformed tensor')
    return rebuild.call(allowance, *arguments)


def _size(allowance, sizes):
    _demand(_are_sizes(sizes), 'a malformed size')
    return torch.Size(sizes)


def _device(allowance, kind, index=0):
    _demand(
        type(kind) is str and re.fullmatch('[a-z]{1,20}(:[0-9]{1,3})?', kind) and type(index) is int,
        'a malformed device',
    )
    return torch.device(kind if ':' in kind or not index else f'{kind}:{index}')


def _ordered_dict(allowance, pairs=()):
    _demand(type(pairs) in (list, tuple) and all(type(pair) in (list, tuple) for pair in pairs), 'a malformed dict')
    allowance.spend(_ITEM * len(pairs))
    return OrderedDict((check_key(key), value) for key, value in pairs)


def _counter(allowance, counts):
    _demand(type(counts) is dict, 'a malformed Counter')
    allowance.spend(_ITEM * len(counts))
    return Counter({key: int(count) for key, count in counts.items()})


def _set(kind):
    def make(allowance, items=()):
        _demand(type(items) in (list, tuple), f'a malformed {kind.__name__}')
        allowance.spend(_ITEM * len(items))
        return kind(check_key(item) for item in items)

    return make


def _encode(allowance, text, encoding):
    _demand(type(text) is str and encoding in ('latin1', 'latin-1'), 'malformed bytes')
    allowance.spend(len(text))
    return text.encode(encoding)


def _bytearray(allowance, data=b'', encoding=None):
    data = data if type(data) is bytes else _encode(allowance, data, encoding)
    allowance.spend(len(data))
    return bytearray(data)


def _complex(allowance, real, imaginary):
    _demand(type(real) is float and type(imaginary) is float, 'a malformed complex number')
    return complex(real, imaginary)


def _slice(allowance, *ends):
    _demand(all(end is None or type(end) is int for end in ends), 'a malformed slice')
    return slice(*ends)


def _empty_bytes(allowance):
    """How older pickles hold bytes of length 0."""
    return b''


def _statistic(allowance, owner, name):
    """The four statistics of a HistoryBuffer are the ones that getattr may find: a fresh one has them by itself."""
    _demand(type(owner) is Name and owner.name == HISTORY and name in _STATISTICS, 'a getattr, which could run code')


def _plain(allowance, content=None):
    """An object that was saved with the weights, such as a config, becomes a plain dict."""
    return content if type(content) is dict else {}


def _default_dict(allowance, factory=None):
    return {}


def _dtype(allowance, code, align, copy):
    _demand(type(code) is str and _NUMBERS.fullmatch(code), 'an array of other things than numbers')
    return np.dtype(code)


def _array(allowance, kind, shape, code):
    """An empty array, which `build` fills."""
    return np.ndarray(0, np.int8)


def _scalar(allowance, dtype, data):
    _demand(isinstance(dtype, np.dtype) and type(data) is bytes and len(data) == dtype.itemsize, 'a malformed number')
    return np.frombuffer(data, dtype)[0]


def _fill_array(allowance, array, state):
    _demand(type(state) is tuple and len(state) == 5, 'a malformed array')
    _, shape, dtype, fortran, data = state
    _demand(isinstance(dtype, np.dtype) and type(data) is bytes and _are_sizes(shape), 'a malformed array')
    _demand(prod(shape) * dtype.itemsize == len(data) and type(fortran) is bool, 'an array that lies outside its data')
    allowance.spend(len(data))
    array.__setstate__((1, shape, dtype, fortran, data))


def _fill_ordered_dict(found, state):
    """Keeps the versions of modules, which torch saves with a state dict. Nothing else is set."""
    _demand(type(state) is dict, 'a malformed dict')
    versions = state.get('_metadata')
    if versions is not None:
        plain = isinstance(versions, dict) and all(type(own) is dict for own in versions.values())
        _demand(
            plain and all(type(value) in SCALARS for own in versions.values() for value in own.values()),
            'a malformed _metadata',
        )
        found._metadata = versions


def build(allowance, found, state) -> None:
    """Puts a state that a pickle holds into an object, as far as it is one of those that need theirs."""
    if type(found) is np.ndarray:
        _fill_array(allowance, found, state)
    elif type(found) is OrderedDict:
        _fill_ordered_dict(found, state)
    elif isinstance(found, np.dtype):
        _demand(type(state) is tuple and len(state) > 1 and state[1] in ('<', '|'), 'an array of another byte order')
    elif type(found) is not dict:  # the state of what became a plain dict is left out
        raise Refused(f'its pickle sets the state of a {type(found).__name__}')


HISTORY = 'mmengine.logging.history_buffer.HistoryBuffer'
_STORAGES = {
    'BFloat16Storage': torch.bfloat16,
    'BoolStorage': torch.bool,
    'ByteStorage': torch.uint8,
    'CharStorage': torch.int8,
    'ComplexDoubleStorage': torch.complex128,
    'ComplexFloatStorage': torch.complex64,
    'DoubleStorage': torch.float64,
    'FloatStorage': torch.float32,
    'HalfStorage': torch.float16,
    'IntStorage': torch.int32,
    'LongStorage': torch.int64,
    'ShortStorage': torch.int16,
}
_REBUILD = {
    'torch._utils._rebuild_parameter': _parameter,
    'torch._utils._rebuild_parameter_with_state': _parameter,
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor_v2,
    'torch._utils._rebuild_tensor_v3': _tensor_v3,
}
_FUNCTIONS = {
    **_REBUILD,
    '_codecs.encode': _encode,
    'builtins.bytearray': _bytearray,
    'builtins.bytes': _empty_bytes,
    'builtins.complex': _complex,
    'builtins.frozenset': _set(frozenset),
    'builtins.getattr': _statistic,  # in every training checkpoint of mmengine
    'builtins.set': _set(set),
    'builtins.slice': _slice,
    'collections.Counter': _counter,
    'collections.OrderedDict': _ordered_dict,
    'collections.defaultdict': _default_dict,
    'mmengine.config.config.ConfigDict': _plain,
    'numpy.dtype': _dtype,
    'torch.Size': _size,
    'torch._tensor._rebuild_from_type_v2': _of_type,
    'torch.device': _device,
    # numpy 1 and 2: a file may come from either
    **{f'numpy.{core}.multiarray._reconstruct': _array for core in ('core', '_core')},
    **{f'numpy.{core}.multiarray.scalar': _scalar for core in ('core', '_core')},
}
# they stand as arguments of others, and nothing is made of them
_INERT = (
    'builtins.dict',
    'builtins.int',
    'builtins.list',
    'numpy.ndarray',
    'torch.Tensor',
    'torch.nn.parameter.Buffer',
    'torch.nn.parameter.Parameter',
)
_OBJECTS = ('argparse.Namespace', 'mmengine.config.config.ConfigDict', 'yacs.config.CfgNode', HISTORY)


def _names():
    found = {name: Name(name, call=call) for name, call in _FUNCTIONS.items()}
    for name in _OBJECTS:
        found[name] = Name(name, call=_FUNCTIONS.get(name), new=dict)
    for name, dtype in _STORAGES.items():
        found[f'torch.{name}'] = Name(name, dtype=dtype)
    found['torch.storage.UntypedStorage'] = Name('UntypedStorage', dtype=torch.uint8)
    found.update((name, Name(name)) for name in _INERT)
    for name in dir(torch):
        # those of quantised and packed numbers need more than their bytes
        if isinstance(getattr(torch, name), torch.dtype) and not re.match('q|bit|u?int[1-7]$|float4', name):
            found[f'torch.{name}'] = getattr(torch, name)
    return found


NAMES = _names()
