# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The sizes and kinds that define every model, as data. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches

# Each block has one letter. The classes are in models/attention.py, where others may add theirs.
KINDS = {
    'L': 'attention in windows',
    'S': 'attention in shifted windows',
    'N': 'attention in neighborhoods',
    'D': 'deformable attention',
    'P': 'attention to a map reduced by a strided convolution',
    'G': 'attention to the whole map',
    'X': 'a depthwise convolution in place of attention',
}
# The classes are in models/position_bias.py, where others may add theirs.
POSITION_BIASES = {
    'relative': 'a table by displacement, interpolated',
    'depthwise': 'a depthwise convolution of the queries',
    'fixed': 'a table by query and key',
    'log': 'an MLP of the displacement on a logarithmic scale',
    'none': 'nothing',
}
OFFSET_KERNELS = (9, 7, 5, 3)


def add_to_table(table: dict[str, str], name: str, what: str, title: str) -> None:
    """Adds a name to one of the tables above. It is an error if the name is taken."""
    if name in table:
        raise ValueError(f'{title} {name!r} is there already: {table[name]}')
    table[name] = what


def describe(table: dict[str, str]) -> str:
    return ', '.join(f'{name} ({what})' for name, what in table.items())


@dataclass(frozen=True)
class StageSpec:
    """One stage. Only ``dim``, ``heads`` and ``kinds`` have no default."""

    dim: int
    heads: int
    kinds: str  # one letter a block, e.g. 'ND' * 9
    depth: int | None = None  # the number of letters, checked where it is given
    window_size: int = 7  # of L, S, N and X
    groups: int = 1  # D: offset groups
    key_stride: int = 1  # D: queries per key along an axis
    offset_kernel: int | None = None  # D: None is 9, 7, 5, 3 by stage
    range_factor: float | None = None  # D: below 0, offsets are not limited. None is that of the generation
    offsets: bool = True  # D: False keeps the points on the grid
    position_bias: str | None = None  # D: None is 'relative', or 'none' where keys are pooled
    reduction: int = 1  # P: queries per key along an axis

    def __post_init__(self):
        if self.depth is None:
            object.__setattr__(self, 'depth', len(self.kinds))
        unknown = sorted(set(self.kinds) - set(KINDS))
        rules = (
            (not unknown, f'kinds={self.kinds!r} has {unknown}: the kinds are {describe(KINDS)}'),
            (self.kinds, 'kinds is empty: a stage has at least one block'),
            (
                self.depth == len(self.kinds),
                f'kinds={self.kinds!r} has {len(self.kinds)} letters, not depth={self.depth}: one letter a block',
            ),
            (
                self.heads > 0 and self.dim % self.heads == 0,
                f'dim={self.dim} is not a multiple of heads={self.heads}',
            ),
            (
                'D' not in self.kinds or (self.groups > 0 and self.heads % self.groups == 0),
                f'heads={self.heads} is not a multiple of groups={self.groups}',
            ),
            (
                self.position_bias in (None, *POSITION_BIASES),
                f'position_bias={self.position_bias!r} is not one of {", ".join(POSITION_BIASES)}',
            ),
            (self.window_size > 0, f'window_size={self.window_size} is not positive'),
            (self.key_stride > 0, f'key_stride={self.key_stride} is not positive'),
            (self.reduction > 0, f'reduction={self.reduction} is not positive'),
            (
                not set(self.kinds) & set('NX') or self.window_size % 2,
                f'window_size={self.window_size} is even: kinds N and X need an odd one',
            ),
        )
        for holds, rule in rules:
            if not holds:
                raise ValueError(rule)


@dataclass(frozen=True)
class Site:
    """Where an attention stands in a model: all that it is given beside its StageSpec."""

    map_size: tuple[int, int]  # at the training resolution
    convention: str  # of the coordinates: see ops/grid.py
    attn_drop: float = 0.0
    proj_drop: float = 0.0


@dataclass(frozen=True)
class Generation:
    """The features that all blocks of a generation have in common."""

    convention: str  # of the coordinates: see ops/grid.py
    conv_stem: bool  # two 3x3 convolutions, and 3x3 downsampling, instead of patches
    local_perception: bool  # x + dwconv(x) before each block
    conv_mlp: bool  # a depthwise convolution inside the MLP
    range_factor: float


GENERATIONS = {
    'dat': Generation('dat', conv_stem=False, local_perception=False, conv_mlp=False, range_factor=2),
    'datp': Generation('datpp', conv_stem=False, local_perception=False, conv_mlp=False, range_factor=-1),
    'datpp': Generation('datpp', conv_stem=True, local_perception=True, conv_mlp=True, range_factor=-1),
}


@dataclass(frozen=True)
class Arch:
    generation: str
    stages: tuple[StageSpec, ...]
    drop_path_rate: float = 0.0


def _arch(generation, drop_path_rate, dims, heads, groups, kinds, key_strides=(1, 1, 1, 1)):
    stages = zip(dims, heads, groups, kinds, key_strides, strict=True)
    specs = tuple(StageSpec(d, h, k, groups=g, key_stride=r) for d, h, g, k, r in stages)
    return Arch(generation, specs, drop_path_rate)


_TINY = ('LS', 'LS', 'LD' * 3, 'LD')
_DEEP = ('LS', 'LS', 'LD' * 9, 'LD')
_NEIGHBOR = ('ND', 'ND' * 2, 'ND' * 9, 'DD')
_STRIDES = (8, 4, 2, 1)

ARCHS = {
    'dat-nano': _arch('dat', 0.0, (32, 64, 128, 192), (2, 4, 8, 12), (1, 1, 2, 3), ('LS', 'LS', 'LD', 'LD')),
    'dat-tiny': _arch('dat', 0.2, (96, 192, 384, 768), (3, 6, 12, 24), (1, 1, 3, 6), _TINY),
    'dat-small': _arch('dat', 0.3, (96, 192, 384, 768), (3, 6, 12, 24), (1, 1, 3, 6), _DEEP),
    'dat-base': _arch('dat', 0.5, (128, 256, 512, 1024), (4, 8, 16, 32), (1, 1, 4, 8), _DEEP),
    'datp-tiny': _arch('datp', 0.2, (64, 128, 256, 512), (2, 4, 8, 16), (1, 2, 4, 8), _NEIGHBOR, _STRIDES),
    'datpp-nano': _arch(
        'datpp', 0.0, (32, 64, 128, 192), (2, 4, 8, 12), (1, 2, 4, 6), ('ND', 'ND', 'ND', 'DD'), _STRIDES
    ),
    'datpp-tiny': _arch('datpp', 0.2, (64, 128, 256, 512), (2, 4, 8, 16), (1, 2, 4, 8), _NEIGHBOR, _STRIDES),
    'datpp-small': _arch('datpp', 0.4, (96, 192, 384, 768), (3, 6, 12, 24), (1, 2, 3, 6), _NEIGHBOR, _STRIDES),
    'datpp-base': _arch('datpp', 0.7, (128, 256, 512, 1024), (4, 8, 16, 32), (2, 4, 8, 16), _NEIGHBOR, _STRIDES),
}


def _one_a_stage(name, value, stages):
    known = [field.name for field in fields(StageSpec)]
    if name not in known:
        raise TypeError(
            f'there is an unexpected keyword argument {name!r}; the fields of a stage are {", ".join(known)}'
        )
    values = list(value) if isinstance(value, list | tuple) else [value] * len(stages)
    if len(values) != len(stages):
        raise ValueError(f'{name}={value!r} has {len(values)} values for {len(stages)} stages')
    return values


def resolve(arch: str | Sequence, generation: str | None = None, **overrides) -> Arch:
    """The Arch of a name, or of a list of stages, with the fields in ``overrides`` replaced.

    ``overrides`` are fields of StageSpec, each one value for all stages or a list with one for each.
    A list of stages (StageSpecs or dicts) is of generation 'datpp' unless ``generation`` says otherwise.
    """
    if isinstance(arch, Arch):
        found = arch
    elif isinstance(arch, str):
        if arch not in ARCHS:
            near = get_close_matches(arch.lower(), ARCHS, n=1, cutoff=0.0)[0]
            raise ValueError(f'arch={arch!r} is unknown: did you mean {near!r}? There are {", ".join(ARCHS)}')
        found = ARCHS[arch]
    else:
        if not arch:
            raise ValueError(f'arch={arch!r} has no stages')
        found = Arch('datpp', tuple(s if isinstance(s, StageSpec) else StageSpec(**s) for s in arch))
    generation = generation or found.generation
    if generation not in GENERATIONS:
        raise ValueError(f'generation={generation!r} is not one of {", ".join(GENERATIONS)}')
    stages = list(found.stages)
    changes = {name: _one_a_stage(name, value, stages) for name, value in overrides.items() if value is not None}
    for i, stage in enumerate(stages):
        try:
            stage = replace(stage, **{name: values[i] for name, values in changes.items()})
        except ValueError as error:
            raise ValueError(f'stage {i}: {error}') from None
        kernel = OFFSET_KERNELS[min(i, 3)] if stage.offset_kernel is None else stage.offset_kernel
        factor = GENERATIONS[generation].range_factor if stage.range_factor is None else stage.range_factor
        pooled = not stage.offsets and GENERATIONS[generation].convention == 'datpp'
        bias = ('none' if pooled else 'relative') if stage.position_bias is None else stage.position_bias
        stages[i] = replace(stage, offset_kernel=kernel, range_factor=factor, position_bias=bias)
    return Arch(generation, tuple(stages), found.drop_path_rate)
