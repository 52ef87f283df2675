# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""with_cp='auto': parts of blocks that give much memory for little time are computed again in the backward.

The attention and the MLP of each block are such parts, with their norms. The first training step measures what each
keeps and how long it takes. From then on a part keeps all, makes what is cheap again (remaking.py), or makes
everything again. No number depends on that, so processes and runs that choose otherwise agree to the bit.
"""

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .remaking import remaking
from .tracing import compiling

SHARE = 0.05  # of the time of forward and backward may go into computing again
BACKWARD = 2.0  # the time of a backward over that of the forward
TRIES = 3


class Cost(NamedTuple):
    """What a part keeps for its backward, in bytes, and the seconds that it takes; and how much of both is cheap."""

    kept: int
    seconds: float
    cheap: int
    cheap_seconds: float


def keep(part: Callable, x: Tensor) -> Tensor:
    """Keeps all that the backward needs."""
    return part(x)


def remake(part: Callable, x: Tensor) -> Tensor:
    """Makes what is cheap again in the backward."""
    with remaking():
        return part(x)


def recompute(part: Callable, x: Tensor) -> Tensor:
    """Computes the whole part again in the backward, and keeps its input alone."""
    return checkpoint(part, x, use_reentrant=False)  # a re-entrant checkpoint breaks under DDP


class Recomputing:
    """Runs the parts of a backbone's blocks, and chooses how, once it has measured each of them."""

    def __init__(self, blocks: dict[str, nn.Module]):
        self.costs: dict[str, Cost] = {}  # by the name of the block and of the part
        self.ways: dict[str, Callable] | None = None
        for name, block in blocks.items():
            block.run = partial(self.run, name)

    def run(self, name: str, part: Callable, x: Tensor) -> Tensor:
        if compiling() or not torch.is_grad_enabled() or not part.__self__.training:
            return part(x)
        name = f'{name}.{part.__name__}'
        if self.ways is None:
            self.costs[name] = measure(part, x)
        return (self.ways or {}).get(name, recompute)(part, x)

    def choose(self) -> str | None:
        """Ends the measurement, if there was one, chooses, and says what."""
        if self.ways is not None or not self.costs:
            return None
        self.ways, told = choose(self.costs)
        return told


SECONDS = {keep: lambda cost: 0.0, remake: lambda cost: cost.cheap_seconds, recompute: lambda cost: cost.seconds}
SPARED = {keep: lambda cost: 0, remake: lambda cost: cost.cheap, recompute: lambda cost: cost.cheap + cost.kept}


def choose(costs: dict[str, Cost]) -> tuple[dict[str, Callable], str]:
    """How each part is run, by name, and what that should spare and cost: the most bytes a second first."""
    total = (1 + BACKWARD) * sum(cost.seconds for cost in costs.values())
    steps = [(c.cheap, c.cheap_seconds, name, remake) for name, c in costs.items() if c.cheap]
    steps += [(c.kept, c.seconds - c.cheap_seconds, name, recompute) for name, c in costs.items()]
    steps.sort(key=lambda step: step[0] / max(step[1], 1e-9), reverse=True)
    ways, spent = dict.fromkeys(costs, keep), 0.0
    for *_, name, way in steps:
        more = SECONDS[way](costs[name]) - SECONDS[ways[name]](costs[name])
        if ways[name] is not recompute and spent + more <= SHARE * total:
            ways[name], spent = way, spent + more
    spared = sum(SPARED[way](costs[name]) for name, way in ways.items())
    kept = sum(map(SPARED[recompute], costs.values()))
    count = {way: list(ways.values()).count(way) for way in (recompute, remake)}
    return ways, (
        f'of {len(ways)} parts, {count[recompute]} are computed again and {count[remake]} in what is cheap, '
        f'which spares {spared / 1e6:.0f} of {kept / 1e6:.0f} MB and takes {spent / max(total, 1e-9):.1%} of the time'
    )


def measure(part: Callable, x: Tensor) -> Cost:
    """Runs a part a few times, and leaves the generators of random numbers as they were."""
    on_gpu = x.device.type == 'cuda'
    own = {t.untyped_storage().data_ptr() for t in (x, *part.__self__.parameters())}

    def clock():
        if on_gpu:
            torch.cuda.synchronize(x.device)
        return time.perf_counter()

    costs = []
    with torch.random.fork_rng([x.device] if on_gpu else []):
        for _ in range(TRIES):
            start = clock()
            with remaking(clock) as made:
                part(x.detach().requires_grad_())
            seconds = clock() - start
            kept = sum(size for address, size in made.kept.items() if address not in own)
            costs.append(Cost(kept, seconds, sum(made.spared.values()), made.seconds))
    return min(costs, key=lambda cost: cost.seconds)
