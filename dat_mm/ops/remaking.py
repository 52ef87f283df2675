# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Tensors that a backward makes again instead of keeping them: outputs of norms, activations and copies.

They are a good part of what a block keeps, and take little time to make. A linear layer keeps its input. Where that is
`cheaply(F.gelu, x)`, it keeps a recipe instead: that its input is the GELU of x, which GELU keeps anyway.
"""

import threading
from collections.abc import Callable
from contextlib import contextmanager

import torch
from torch import Tensor

from .tracing import autocast_dtype

_active = threading.local()


class Recipe:
    """How a tensor is made: by a function of another one, which may have to be made too."""

    def __init__(self, function: Callable, source: 'Tensor | Recipe', device_type: str):
        dtype = autocast_dtype(device_type)
        self.function, self.source = function, source
        self.version = source._version if torch.is_tensor(source) else 0
        self.autocast = dict(device_type=device_type, dtype=dtype, enabled=dtype is not None)

    def make(self) -> Tensor:
        source = self.source if torch.is_tensor(self.source) else self.source.make()
        if torch.is_tensor(self.source) and source._version != self.version:
            raise RuntimeError('a tensor that another one is made from again was changed in place')
        with torch.no_grad(), torch.autocast(**self.autocast):
            return self.function(source)


class Made:
    """A tensor with its recipe, which holds as long as nothing changes the tensor in place."""

    def __init__(self, tensor: Tensor, recipe: Recipe):
        self.tensor, self.recipe, self.version = tensor, recipe, tensor._version

    def has(self, x: Tensor) -> bool:
        """Whether the numbers of x, which has the same memory, are numbers of the tensor."""
        return x.dtype == self.tensor.dtype and x._version == self.version


class Remaking:
    """What a part of a network keeps for its backward, and what it only has recipes for, in bytes by address."""

    def __init__(self, clock: Callable | None):
        self.clock, self.seconds = clock, 0.0  # that the functions of the recipes took
        self.made: dict[int, Made] = {}  # by address
        self.kept: dict[int, int] = {}
        self.spared: dict[int, int] = {}

    def find(self, x: Tensor) -> Made | None:
        made = self.made.get(_address(x))
        return made if made is not None and made.has(x) else None

    def add(self, function: Callable, x: Tensor) -> Tensor:
        start = self.clock() if self.clock else 0.0
        out = function(x)
        self.seconds += self.clock() - start if self.clock else 0.0
        if _address(out) != _address(x):
            source = self.find(x)
            whole = source is not None and (x.shape, x.stride()) == (source.tensor.shape, source.tensor.stride())
            recipe = Recipe(function, source.recipe if whole else x.detach(), x.device.type)
            self.made[_address(out)] = Made(out, recipe)
        return out

    def pack(self, x: Tensor):
        made = self.find(x)
        (self.kept if made is None else self.spared)[_address(x)] = x.untyped_storage().nbytes()
        if made is None:
            return x.detach()
        return made.recipe, x.shape, x.stride(), x.storage_offset()

    @staticmethod
    def unpack(packed) -> Tensor:
        if torch.is_tensor(packed):
            return packed
        recipe, *view = packed
        return recipe.make().as_strided(*view)


def _address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


@contextmanager
def remaking(clock: Callable | None = None):
    """Keeps recipes instead of tensors that are made `cheaply` inside. With a clock it measures what that takes."""
    before, _active.now = getattr(_active, 'now', None), Remaking(clock)
    try:
        with torch.autograd.graph.saved_tensors_hooks(_active.now.pack, _active.now.unpack):
            yield _active.now
    finally:
        _active.now.made.clear()
        _active.now = before


def cheaply(function: Callable, x: Tensor) -> Tensor:
    """The function of x, which a backward may make again. It has no randomness and changes nothing in place."""
    active = getattr(_active, 'now', None)
    return function(x) if active is None else active.add(function, x)
