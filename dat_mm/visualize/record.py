# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Taking queries, keys and points from a model's own forward."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..models.deformable import DeformableAttention
from .decoder import DecoderLayer, cross_attentions
from .geometry import MapGrid, strides
from .layer import Layer


@dataclass
class _Site:
    """A deformable layer of a model. `place` is that of its map, as `strides` gives it, None without a backbone."""

    attention: DeformableAttention
    place: tuple[float, float] | None = None
    stage: int | None = None


class Recording:
    """What the deformable layers of a model did in its last forward.

    A list of names, and a Layer for each: `recording['stages.2.blocks.1.attn']`. The end of a name does too.
    `input_size` is the (height, width) that the backbone got, padding included. `decoder` has what each layer of a
    detection transformer's decoder sampled, in their order; it is empty for other models.
    """

    def __init__(self, model: nn.Module, sites: dict[str, _Site]):
        self.model_name = type(model).__name__
        self.input_size: tuple[int, int] | None = None
        self.decoder: dict[str, DecoderLayer] = {}
        self._sites = sites
        self._taken: dict[str, dict[str, Tensor]] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(name for name in self._sites if name in self._taken)

    def __len__(self):
        return len(self._taken)

    def __getitem__(self, name: str) -> Layer:
        return self.layer(name)

    def __repr__(self):
        return '\n'.join(repr(self.layer(name)) for name in self) or f'nothing recorded of {self.model_name} yet'

    def find(self, name: str | None = None) -> str:
        """The full name of a layer. None is the last of the third stage, or the last of all where that has none."""
        names = list(self)
        if not names:
            raise UserError(f'nothing is recorded: call the {self.model_name} inside `with record(model)`')
        if name is None:
            third = [n for n in names if self._sites[n].stage == 2]
            return (third or names)[-1]
        wanted = _expand(name)
        found = [n for n in names if n == wanted or n.endswith(f'.{wanted}')]
        if len(found) == 1:
            return found[0]
        what = 'several layers' if found else 'no deformable layer'
        raise UserError(f'layer {name!r} is {what} of {self.model_name}: there are {", ".join(found or names)}')

    def layer(self, name: str | None = None, image: int = 0) -> Layer:
        """A layer as it was for one image of the batch."""
        name = self.find(name)
        taken, site = self._taken[name], self._sites[name]
        batch = len(taken['q'])
        if not -batch <= image < batch:
            raise UserError(f'image {image} is not in the batch of {batch}')
        q, k, points = (taken[part][image] for part in ('q', 'k', 'points'))
        height, width = q.shape[:2]
        first, step = site.place or (0.0, 1.0)
        grid = MapGrid(height, width, (first, first), (step, step))
        return Layer(name, site.attention, q, k, points, grid)

    def layers(self, image: int = 0) -> list[Layer]:
        """All layers in the order of the forward, for one image of the batch."""
        return [self.layer(name, image) for name in self]


def _expand(name: str) -> str:
    """Writes out the short name STAGE.BLOCK of a layer."""
    parts = name.split('.')
    if len(parts) == 2 and all(part.isdecimal() for part in parts):
        return f'stages.{parts[0]}.blocks.{parts[1]}.attn'
    return name


def _backbones(model: nn.Module):
    for name, module in model.named_modules():
        if all(hasattr(module, part) for part in ('stem', 'stages', 'downsamples')):
            yield name, module


def _find_sites(model: nn.Module) -> dict[str, _Site]:
    sites = {name: _Site(module) for name, module in model.named_modules() if isinstance(module, DeformableAttention)}
    for prefix, backbone in _backbones(model):
        for stage, place in enumerate(strides(backbone)):
            start = f'{prefix}.' * bool(prefix) + f'stages.{stage}.'
            for name, site in sites.items():
                if name.startswith(start):
                    site.stage, site.place = stage, place
    return sites


@contextmanager
def record(model: nn.Module) -> Iterator[Recording]:
    """Records what the deformable layers of a model do in each forward inside the context.

    The last forward counts. The outputs of the model are the same to the bit, and nothing is left in the model
    afterwards. Tensors are copied, detached, and stay on their device.
    """
    sites = _find_sites(model)
    if not sites:
        raise UserError(f'{type(model).__name__} has no deformable attention to look at (kind D of dat_mm.DAT)')
    recording = Recording(model, sites)
    handles = []

    def take(name, **tensors):
        recording._taken.setdefault(name, {}).update({key: x.detach().clone() for key, x in tensors.items()})

    def take_queries(name):
        def hook(module, args, output):
            q, points, size = args
            take(name, q=q, points=points.unflatten(2, tuple(size)))

        return hook

    def take_keys(name):
        return lambda module, args, output: take(name, k=output)

    def take_decoder(name):
        def hook(module, args, kwargs):
            parts = (kwargs.get(key) for key in ('query_pos', 'reference_points', 'spatial_shapes'))
            with torch.no_grad():
                recording.decoder[name] = DecoderLayer.of(module, args[0] if args else kwargs['query'], *parts)

        return hook

    def take_size(module, args):
        recording.input_size = tuple(args[0].shape[-2:])

    try:
        for name, site in sites.items():
            handles.append(site.attention.position_bias.register_forward_hook(take_queries(name)))
            handles.append(site.attention.proj_k.register_forward_hook(take_keys(name)))
        for name, module in cross_attentions(model).items():
            handles.append(module.register_forward_pre_hook(take_decoder(name), with_kwargs=True))
        for _, backbone in _backbones(model):
            handles.append(backbone.register_forward_pre_hook(take_size))
        yield recording
    finally:
        for handle in handles:
            handle.remove()
