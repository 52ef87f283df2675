# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Small models of every kind that can be exported, with weights that find something, and pictures for them."""

from pathlib import Path

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from dat_mm.deploy.pixels import Preprocessing

CONFIGS = Path(__file__).parents[2] / 'configs/shapes'
ARCHS = {
    'dat': [
        dict(dim=16, heads=1, kinds='L'),
        dict(dim=16, heads=1, kinds='S'),
        dict(dim=32, heads=2, kinds='D', groups=2),
        dict(dim=32, heads=1, kinds='D'),
    ],
    'datpp': [
        dict(dim=16, heads=2, kinds='N'),
        dict(dim=16, heads=1, kinds='D', key_stride=4, offset_kernel=5),
        dict(dim=32, heads=2, kinds='D', groups=2),
        dict(dim=32, heads=1, kinds='N'),
    ],
}
DIMS = [16, 16, 32, 32]
KINDS = {  # kind: the config of a nano model, whose backbone is replaced
    'classifier': '{}-nano_1xb32_shapes',
    'semantic-fpn': '{}-nano_semantic-fpn_1xb8_shapes-128x128',
    'upernet': '{}-nano_upernet_1xb8_shapes-128x128',
    'retinanet': 'retinanet_{}-nano_fpn_1xb4_shapes',
    'mask-rcnn': 'mask-rcnn_{}-nano_fpn_1xb4_shapes',
    'cascade': 'cascade-mask-rcnn_{}-nano_fpn_1xb4_shapes',
}
PLAIN = Preprocessing()
SPREADS = {'retina_cls': 0.1, 'retina_reg': 0.1, 'rpn_cls': 0.1, 'rpn_reg': 0.1, 'fc_cls': 0.3, 'fc_reg': 0.05}


def config(kind: str, generation: str) -> Config:
    """The config of a kind of model with a small backbone, and no weights to begin with."""
    cfg = Config.fromfile(CONFIGS / f'{KINDS[kind].format(generation)}.py')
    backbone = cfg.model.backbone
    backbone.arch, backbone.generation, backbone.init_cfg = ARCHS[generation], generation, None
    backbone.img_size = 96
    backbone.out_indices = (0, 1, 2, 3) if 'neck' in cfg.model and kind != 'classifier' else backbone.out_indices
    if kind == 'classifier':
        cfg.model.head.in_channels = DIMS[-1]
    elif kind == 'upernet':
        cfg.model.decode_head.in_channels, cfg.model.backbone.out_indices = DIMS, (0, 1, 2, 3)
        if cfg.model.get('auxiliary_head'):
            cfg.model.auxiliary_head.in_channels = DIMS[cfg.model.auxiliary_head.in_index]
    else:
        cfg.model.neck.in_channels = DIMS
    return cfg


def weigh(model: nn.Module) -> None:
    """Gives a model weights by chance that move sampling points and make heads sure of something."""
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        layer = name.split('.')[-2] if '.' in name else name
        if parameter.ndim > 1:
            fan = parameter[0].numel()
            nn.init.normal_(parameter, std=SPREADS.get(layer, fan**-0.5))
        elif name.endswith('bias'):
            nn.init.normal_(parameter, std=0.02)
    for name, buffer in model.named_buffers():
        if name.endswith('running_var'):
            buffer.fill_(1.0)


def build(kind: str, generation: str) -> nn.Module:
    cfg = config(kind, generation)
    init_default_scope(cfg.default_scope)
    if cfg.get('data_preprocessor') and not cfg.model.get('data_preprocessor'):
        cfg.model.data_preprocessor = cfg.data_preprocessor
    model = MODELS.build(cfg.model).eval()
    weigh(model)
    return model


def pictures(count: int, height: int, width: int) -> np.ndarray:
    """Pictures (count, height, width, 3) of bright and dark rectangles on noise."""
    rng = np.random.default_rng(height * width)
    images = rng.integers(90, 160, (count, height, width, 3), np.uint8)
    for image in images:
        for _ in range(4):
            y, x = rng.integers(0, height), rng.integers(0, width)
            image[y : y + height // 3, x : x + width // 3] = rng.integers(0, 256, 3)
    return images
