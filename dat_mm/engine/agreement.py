# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What one process of a run notices is told to all of them, so that they do the same."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from mmengine.hooks import Hook


class Agreement(Hook):
    """Flags that a process raises for all processes. They share one message of an iteration.

    The message goes over gloo, so that a GPU is not waited for.
    """

    priority = 'HIGHEST'  # the iteration begins before anybody asks

    def __init__(self):
        self._flags: dict[str, Callable[[], bool]] = {}
        self._agreed, self._group = None, None

    def add(self, name: str, raised: Callable[[], bool]) -> None:
        """Adds a flag, and the function that says whether this process raises it."""
        self._flags[name] = raised

    def before_train(self, runner) -> None:
        if dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend='gloo')

    def _before_iter(self, runner, batch_idx, data_batch=None, mode='train') -> None:
        self._agreed = None

    def any(self, name: str) -> bool:
        """Says whether any process raises a flag. The first to ask in an iteration has all flags exchanged."""
        if self._agreed is None:
            flags = torch.tensor([int(raised()) for raised in self._flags.values()])
            if self._group is not None:
                dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self._group)
            self._agreed = dict(zip(self._flags, flags.bool().tolist(), strict=True))
        return self._agreed[name]

    def gather(self, value) -> list:
        """Returns what each process has for a value, in the order of the processes."""
        if self._group is None:
            return [value]
        values = [None] * dist.get_world_size()
        dist.all_gather_object(values, value, group=self._group)
        return values

    def wait(self) -> None:
        """Waits until all processes are here."""
        if self._group is not None:
            dist.barrier(group=self._group)
