# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Blocks and stages, built from a StageSpec."""

from collections.abc import Callable

from torch import Tensor, nn

from ..arch import Generation, Site, StageSpec
from ..ops.recomputing import recompute
from ..ops.remaking import cheaply
from .attention import ATTENTION
from .layers import MLP, ConvMLP, DropPath, add_conv, conv_last

MLP_RATIO = 4


class Block(nn.Module):
    """Attention and MLP, each with its norm and residual."""

    backend = 'auto'

    def __init__(self, kind: str, spec: StageSpec, generation: Generation, site: Site, *, drop_path: float):
        super().__init__()
        dim = spec.dim
        self.local_perception = nn.Conv2d(dim, dim, 3, padding=1, groups=dim) if generation.local_perception else None
        self.add_mixer(kind, spec, site, drop_path)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = (ConvMLP if generation.conv_mlp else MLP)(dim, MLP_RATIO * dim, site.proj_drop)
        self.drop_path2 = DropPath(drop_path)

    def add_mixer(self, kind: str, spec: StageSpec, site: Site, drop_path: float) -> None:
        """Adds the layers that `mix` needs."""
        self.norm1 = nn.LayerNorm(spec.dim)
        self.attn = ATTENTION[kind].from_spec(spec, site)
        self.drop_path1 = DropPath(drop_path)

    def attend(self, x: Tensor) -> Tensor:
        """What attention adds to the map."""
        return self.drop_path1(self.attn(cheaply(self.norm1, x)))

    def transform(self, x: Tensor) -> Tensor:
        """What the MLP adds to the map."""
        return self.drop_path2(self.mlp(cheaply(self.norm2, x)))

    def run(self, part: Callable, x: Tensor) -> Tensor:
        """Runs a part of the block. With with_cp='auto' it is Recomputing.run of ops/recomputing.py."""
        return part(x)

    def mix(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The map that the output of the MLP is added to, and the map that the MLP gets."""
        x = x + self.run(self.attend, x)
        return x, x

    def forward(self, x: Tensor) -> Tensor:
        if self.local_perception is not None:
            x = add_conv(self.local_perception, x, self.backend)
        x, mixed = self.mix(x)
        return x + self.run(self.transform, mixed)


class ConvBlock(Block):
    """A depthwise convolution, a norm and an MLP, with one residual around all three: kind X."""

    def add_mixer(self, kind: str, spec: StageSpec, site: Site, drop_path: float) -> None:
        w, dim = spec.window_size, spec.dim
        self.conv = nn.Conv2d(dim, dim, w, padding=w // 2, groups=dim)

    def mix(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, conv_last(self.conv, x)


class Stage(nn.Module):
    """The blocks of a stage, one after the other.

    With with_cp=True, each is computed again in the backward pass instead of keeping its activations.
    """

    def __init__(
        self, spec: StageSpec, generation: Generation, site: Site, *, drop_path: list[float], with_cp: bool = False
    ):
        super().__init__()
        self.with_cp = with_cp
        self.blocks = nn.ModuleList(
            (ConvBlock if kind == 'X' else Block)(kind, spec, generation, site, drop_path=rate)
            for kind, rate in zip(spec.kinds, drop_path, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = recompute(block, x) if self.with_cp and self.training else block(x)
        return x
