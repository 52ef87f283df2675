# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""The backbone: a stem, stages with downsampling between them, and a norm on each output."""

from collections.abc import Sequence

from torch import Tensor, nn

from ..arch import GENERATIONS, Site, resolve
from ..ops.layout import channels_first, channels_last
from ..ops.recomputing import Recomputing
from .backend import set_backend
from .base import BaseModule, print_log
from .blocks import Stage
from .layers import ConvStem, OverlappingConv, PatchConv
from .pretrained import fit_tables, load_pretrained


def _pair(size) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise ValueError(f'img_size={size} is not a positive number, or (height, width) of such')
    return height, width


class DAT(BaseModule):
    """DAT, DAT+ or DAT++.

    It maps images (B, C, H, W) of any size to a tuple with one map for each of ``out_indices``. The map of stage i is
    (B, C_i, ceil(H / s), ceil(W / s)) with s = 4, 8, 16, 32 by stage. Each goes through a norm of its own.

    Args:
        arch: a name (see ``dat_mm.ARCHS``), or a list of StageSpecs or of dicts of their fields.
        img_size: the training resolution, a number or (height, width): it sets the size of the bias tables.
        generation: 'dat', 'datp' or 'datpp'. None is that of the name, and 'datpp' for a list.
        drop_path_rate: the rate of the last block. Rates grow from 0 at the first. None is that of the arch.
        frozen_stages: -1 freezes nothing, 0 the stem, n the stem and the first n stages.
        with_cp: compute blocks again in the backward instead of keeping their activations. 'auto' does so with what
            gives the most memory for 5 % of the time, as measured in the first training step.
        backend: a name from ops/backends.py. Ops without a backend of that name use 'auto'.
        stage_fields: fields of StageSpec (kinds, window_size, groups, position_bias, ...). Each is one value for all
            stages, or a list with one for each. None keeps what the arch says. Any other name is an error.
    """

    def __init__(
        self,
        arch: str | Sequence,
        *,
        img_size: int | tuple[int, int] = 224,
        in_channels: int = 3,
        generation: str | None = None,
        drop_path_rate: float | None = None,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        out_indices: Sequence[int] = (3,),
        frozen_stages: int = -1,
        with_cp: bool | str = False,
        backend: str = 'auto',
        init_cfg=None,
        **stage_fields,
    ):
        super().__init__(init_cfg)
        self.arch = resolve(arch, generation, **stage_fields)
        stages, generation = self.arch.stages, GENERATIONS[self.arch.generation]
        self.in_channels = in_channels
        self.out_indices = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
        for i in self.out_indices:
            if not 0 <= i < len(stages):
                raise ValueError(f'out_indices={self.out_indices}: {i} is out of range, there are {len(stages)} stages')
        if not -1 <= frozen_stages <= len(stages):
            raise ValueError(f'frozen_stages={frozen_stages} is out of range: -1 to {len(stages)}')
        self.frozen_stages = frozen_stages
        if with_cp not in (False, True, 'auto'):
            raise ValueError(f"with_cp={with_cp!r} is not False, True or 'auto'")

        self.stem = (
            ConvStem(in_channels, stages[0].dim)
            if generation.conv_stem
            else PatchConv(in_channels, stages[0].dim, 4, bias=True)
        )
        rate = self.arch.drop_path_rate if drop_path_rate is None else drop_path_rate
        depth = sum(stage.depth for stage in stages)
        rates = [rate * i / max(depth - 1, 1) for i in range(depth)]
        self.stages, self.downsamples = nn.ModuleList(), nn.ModuleList()
        height, width = _pair(img_size)
        for i, spec in enumerate(stages):
            map_size = -(-height // (4 << i)), -(-width // (4 << i))
            site = Site(map_size, generation.convention, attn_drop_rate, drop_rate)
            drop_path = [rates.pop(0) for _ in spec.kinds]
            self.stages.append(Stage(spec, generation, site, drop_path=drop_path, with_cp=with_cp is True))
            if i + 1 < len(stages):
                dims = spec.dim, stages[i + 1].dim
                self.downsamples.append(
                    OverlappingConv(*dims) if generation.conv_stem else PatchConv(*dims, 2, bias=False)
                )
        for i in self.out_indices:
            self.add_module(f'norm{i}', nn.LayerNorm(stages[i].dim))

        self.recomputing = None
        if with_cp == 'auto':
            blocks = {f'{i}.{j}': block for i, stage in enumerate(self.stages) for j, block in enumerate(stage.blocks)}
            self.recomputing = Recomputing(blocks)
        self._register_load_state_dict_pre_hook(self._fit_tables)
        set_backend(self, backend)
        self._freeze()

    def _fit_tables(self, state_dict, prefix, *_):
        fit_tables(self, state_dict, prefix)

    def _freeze(self):
        if self.frozen_stages < 0:
            return
        n = self.frozen_stages
        norms = [getattr(self, f'norm{i}') for i in self.out_indices if i < n]
        for module in (self.stem, *self.stages[:n], *self.downsamples[:n], *norms):
            module.eval()
            module.requires_grad_(False)

    def train(self, mode: bool = True):
        super().train(mode)
        self._freeze()
        return self

    def init_weights(self):
        """Loads the checkpoint of ``init_cfg=dict(type='Pretrained', checkpoint=...)``, whatever its layout.

        With checkpoint=None, training starts from scratch. Configs say so, for their user to put a file in its place.
        """
        if not isinstance(self.init_cfg, dict) or self.init_cfg.get('type') != 'Pretrained':
            super().init_weights()
            return
        options = {key: value for key, value in self.init_cfg.items() if key != 'type'}
        if options.get('checkpoint'):
            load_pretrained(self, **options)
        else:
            option = '--cfg-options model.backbone.init_cfg.checkpoint=PATH'
            print_log(f'The backbone starts from scratch; from a checkpoint with {option}', logger='current')
        self._is_init = True

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f'the input has shape {tuple(x.shape)}, not (B, {self.in_channels}, H, W)')
        x = self.stem(channels_last(x))  # (B, H, W, C) from here
        outputs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                outputs.append(channels_first(getattr(self, f'norm{i}')(x)))
            if i + 1 < len(self.stages):
                x = self.downsamples[i](x)
        if self.recomputing is not None and (chosen := self.recomputing.choose()):
            print_log(f"with_cp='auto': {chosen}", logger='current')
        return tuple(outputs)

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """The layer that a parameter belongs to and the number of layers, for layer-wise decay of the learning rate.

        The stem is layer 0, and each block is a layer. A downsampling belongs to the next block. All the rest belongs
        to the last layer.
        """
        depths = [len(stage.blocks) for stage in self.stages]
        last = sum(depths) + 1
        name = param_name.removeprefix(prefix).split('.')
        if not param_name.startswith(prefix):
            layer = last
        elif name[0] == 'stem':
            layer = 0
        elif name[0] == 'stages':
            layer = sum(depths[: int(name[1])]) + int(name[3]) + 1
        elif name[0] == 'downsamples':
            layer = sum(depths[: int(name[1]) + 1]) + 1
        else:
            layer = last
        return layer, last + 1
