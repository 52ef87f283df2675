# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What the processes of a run agree on after each iteration, over gloo, so that no GPU is waited for."""

import torch
import torch.distributed as dist


class Agreement:
    """A group of all processes of a run. With a single process, each call answers at once."""

    def __init__(self):
        self._group = None

    def open(self) -> None:
        """Makes the group; all processes call it together."""
        if self._group is None and dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend='gloo')

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Says for each flag whether it is set in any process."""
        if self._group is None:
            return tuple(map(bool, flags))
        found = torch.tensor([int(bool(flag)) for flag in flags])
        dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self._group)
        return tuple(bool(flag) for flag in found)

    def gather(self, text: str | None) -> list[str]:
        """What the processes have to say, those that have something."""
        if self._group is None:
            return [text] if text else []
        said = [None] * dist.get_world_size()
        dist.all_gather_object(said, text, group=self._group)
        return [text for text in said if text]

    def wait(self) -> None:
        """Waits for all processes."""
        if self._group is not None:
            dist.barrier(group=self._group)
