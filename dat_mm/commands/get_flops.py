# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What tools/get_flops.py does: the parameters and multiply-adds of an arch or of a config's model, by stage."""

from copy import deepcopy
from pathlib import Path
from unittest.mock import patch

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ..complexity import Classifier, Part, count_parts, table
from ..models import DAT

PROPOSALS, MASKS = 1000, 100  # regions for each box head and for each mask head, as in published FLOPs


class OneImage(nn.Module):
    """Runs a toolbox's model on one image, from the pixels to the raw outputs of its heads.

    The heads on regions get as many as published figures are counted for, whatever the proposals would be.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, image):
        if _takes_samples(self.model):
            return self._forward_with_sample(image)
        if not hasattr(self.model, 'roi_head'):
            return self.model(image)
        features = self.model.extract_feat(image)
        outputs = [self.model.rpn_head(features)]
        roi_head = self.model.roi_head
        for heads, extractors, number in (
            (roi_head.bbox_head, roi_head.bbox_roi_extractor, PROPOSALS),
            (getattr(roi_head, 'mask_head', None), getattr(roi_head, 'mask_roi_extractor', None), MASKS),
        ):
            for head, extractor in zip(_stages(heads), _stages(extractors), strict=True):
                size = extractor.roi_layers[0].output_size
                outputs.append(head(image.new_empty(number, extractor.out_channels, *size)))
        return outputs

    def _forward_with_sample(self, image):
        """Gives DETRs and mask transformers the sizes of the image, which they ask its sample for."""
        sample = BaseDataElement()
        size = tuple(image.shape[-2:])
        sample.set_metainfo(dict(batch_input_shape=size, img_shape=size))
        head = getattr(self.model, 'panoptic_head', None) or getattr(self.model, 'decode_head', None)
        # sampling does not count, and would take most of the time
        with patch('mmcv.ops.multi_scale_deform_attn.multi_scale_deformable_attn_pytorch', _without_sampling):
            if head is None:
                return self.model(image, [sample])
            return head(self.model.extract_feat(image), [sample])


def _without_sampling(value, shapes, locations, weights):
    """Makes zeros in the shape of what multi-scale deformable attention samples, (B, Q, M D) of (B, K, M, D)."""
    return value.new_zeros(len(value), locations.shape[1], value.shape[2] * value.shape[3])


def _takes_samples(model) -> bool:
    """Says whether a model has multi-scale deformable attention, as DETRs and Mask2Former have."""
    return any(type(module).__name__ == 'MultiScaleDeformableAttention' for module in model.modules())


def _stages(heads) -> list[nn.Module]:
    """Lists the heads of the stages of a cascade; an ordinary detector is a cascade of one stage."""
    if heads is None:
        return []
    return list(heads) if isinstance(heads, nn.ModuleList) else [heads]


def build_config(cfg: Config) -> nn.Module:
    """Builds the model of a config on the 'meta' device: its parameters have shapes and no memory.

    DETRs and Mask2Former read the sizes of their levels out of tensors, so that they are built on the CPU.
    """
    backbone = cfg.model.get('backbone', {})
    if 'init_cfg' in backbone:
        backbone.init_cfg = None
    # backbones of the toolboxes read numbers out of tensors while they are built
    device = 'meta' if backbone.get('type') == 'dat_mm.DAT' else 'cpu'
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'dat_mm')):
        with torch.device(device):
            model = MODELS.build(deepcopy(cfg.model))  # mmdet's DETRs write into what they are built from
        if not _takes_samples(model):
            return revert_sync_batchnorm(model).to('meta')
        return revert_sync_batchnorm(model if device == 'cpu' else MODELS.build(deepcopy(cfg.model)))


def count_arch(arch, shape, **options) -> list[Part]:
    """Counts the parts of an arch with the head of ImageNet; `options` are those of DAT."""
    with torch.device('meta'):
        return count_parts(Classifier(DAT(arch, **options)), torch.empty(1, 3, *shape))


def count_config(path, shape) -> list[Part]:
    """Counts the parts of the model of a config, which must have a DAT backbone."""
    model = build_config(Config.fromfile(path))
    if not isinstance(getattr(model, 'backbone', None), DAT):
        raise ValueError(f'{path}: its model has no DAT backbone')
    return count_model(model, shape)


def _image(model, shape):
    """Makes an image on the device of a model, which needs values where the model does."""
    return torch.zeros(1, 3, *shape, device=next(model.parameters()).device)


def count_model(model, shape) -> list[Part]:
    """Counts the parts of a model that was built by `build_config` and has a DAT backbone."""
    return count_parts(OneImage(model), _image(model, shape), backbone='model.backbone')


def count_macs(model, shape) -> int:
    """Counts all multiply-adds of a model that was built by `build_config`, with any backbone."""
    if isinstance(model.backbone, DAT):
        return sum(part.macs for part in count_model(model, shape))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        OneImage(model).eval()(_image(model, shape))
    return counter.get_total_flops() // 2


def get_flops(model, *, shape=(224,), img_size=None, window_size=None) -> None:
    """Prints the table of an arch or, where `model` is the name of a .py file, of a config.

    `shape` is the height and width of the input, or one number for both. `img_size`, the training resolution, and
    `window_size` are options of an arch.
    """
    shape = tuple(shape) * 2 if len(shape) == 1 else tuple(shape)
    if Path(model).suffix == '.py':
        parts = count_config(model, shape)
    else:
        options = {'window_size': window_size}
        if img_size:
            options['img_size'] = img_size[0] if len(img_size) == 1 else tuple(img_size)
        parts = count_arch(model, shape, **options)
    print(f'{model}, one image of {shape[0]}x{shape[1]}')
    print(table(parts))
