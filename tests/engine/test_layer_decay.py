# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from mmengine.optim import build_optim_wrapper

from dat_mm import DAT


class Model(torch.nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.neck = torch.nn.Linear(2, 2)


def rates(model, **paramwise):
    wrapper = build_optim_wrapper(
        model,
        dict(
            constructor='dat_mm.LayerDecayOptimWrapperConstructor',
            optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.5),
            paramwise_cfg=paramwise,
        ),
    )
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(group['params'][0])]: group for group in wrapper.optimizer.param_groups}


def test_rates_fall_with_depth():
    model = Model(DAT('dat-nano', out_indices=(1, 3)))
    groups = rates(model, layer_decay_rate=0.5, norm_decay_mult=0.0, custom_keys={'neck': dict(lr_mult=3.0)})
    assert len(groups) == len(list(model.parameters()))
    assert groups['neck.weight']['lr'] == 3.0
    assert groups['backbone.norm3.weight']['lr'] == 1.0
    assert groups['backbone.stages.3.blocks.1.mlp.linear1.weight']['lr'] == 0.5
    assert groups['backbone.downsamples.0.conv.weight']['lr'] == 0.5**6
    assert groups['backbone.stem.conv.weight']['lr'] == 0.5**9
    assert groups['backbone.norm3.weight']['weight_decay'] == 0
    assert groups['neck.weight']['weight_decay'] == 0.5


def test_without_a_rate_nothing_changes():
    assert {group['lr'] for group in rates(Model(DAT('dat-nano')), norm_decay_mult=0.0).values()} == {1.0}


def test_backbones_that_do_not_tell_are_named():
    with pytest.raises(ValueError, match=r'layer_decay_rate=0\.5: Linear has no get_layer_depth'):
        rates(Model(torch.nn.Linear(2, 2)), layer_decay_rate=0.5)
