# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Parameters and multiply-adds, by stage.

Convolutions, linear layers and both products of each attention count, and offset networks count once for every group.
Norms, activations, softmax, sampling and position biases do not count.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .models.backend import set_backend


@dataclass
class Part:
    name: str
    parameters: int = 0
    macs: int = 0
    deformable_macs: int = 0  # those of the deformable attentions
    offset_macs: int = 0  # those of their offset networks


def count_parts(model: nn.Module, *inputs, backbone: str = 'backbone', **kwargs) -> list[Part]:
    """The cost of each stage of a backbone, and of the rest of the model.

    `backbone` is the name of its attribute, or '' where the model is the backbone. One forward pass runs in eval mode
    and in plain PyTorch, so that the counter sees every product. The model is left as it was. A downsampling counts
    with the stage that it leads to.
    """
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        with torch.no_grad(), set_backend(model, 'reference'), FlopCounterMode(display=False) as counter:
            model(*inputs, **kwargs)
    finally:
        for module in training:
            module.training = True
    macs = {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}

    root = '.'.join(filter(None, (type(model).__name__, backbone)))
    module = model.get_submodule(backbone)
    parts = [_part('stem', module, root, ['stem'], macs)]
    for i in range(len(module.stages)):
        names = [f'stages.{i}'] if i == 0 else [f'downsamples.{i - 1}', f'stages.{i}']
        parts.append(_part(f'stage {i + 1}', module, root, names, macs))
    counted = Part('', sum(part.parameters for part in parts), sum(part.macs for part in parts))
    total = sum(p.numel() for p in model.parameters())
    parts.append(Part('the rest', total - counted.parameters, macs['Global'] - counted.macs))
    return parts


def _part(title, backbone, root, names, macs):
    part = Part(title)
    for name in names:
        full = f'{root}.{name}'
        part.parameters += sum(p.numel() for p in backbone.get_submodule(name).parameters())
        part.macs += macs.get(full, 0)
        for key, offset_macs in macs.items():
            if key.startswith(f'{full}.') and key.endswith('.offset_net'):
                part.offset_macs += offset_macs
                part.deformable_macs += macs[key.removesuffix('.offset_net')]
    return part


def table(parts: list[Part]) -> str:
    """The parts as text, one on each line, with the share of the offset networks in their attention modules."""
    lines = [f'{"part":<10} {"parameters":>14} {"multiply-adds":>16} {"offset networks":>18} {"of the module":>14}']
    numbers = ('parameters', 'macs', 'deformable_macs', 'offset_macs')
    total = Part('total', *(sum(getattr(part, field) for part in parts) for field in numbers))
    for part in [*parts, total]:
        offsets = share = '-'
        if part.offset_macs:
            offsets, share = f'{part.offset_macs / 1e6:.3f} M', f'{part.offset_macs / part.deformable_macs:.2%}'
        sizes = f'{part.parameters / 1e6:12.3f} M {part.macs / 1e9:14.3f} G'
        lines.append(f'{part.name:<10} {sizes} {offsets:>18} {share:>14}')
    return '\n'.join(lines)


class Classifier(nn.Module):
    """A backbone with the head for ImageNet, which published counts include."""

    def __init__(self, backbone: nn.Module, num_classes: int = 1000, channels: int | None = None):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(channels or backbone.arch.stages[-1].dim, num_classes)

    def forward(self, x):
        return self.head(self.backbone(x)[-1].mean((2, 3)))
