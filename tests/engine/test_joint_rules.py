# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
import torch
from mmengine.optim import build_optim_wrapper

from dat_mm import DAT


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = DAT('datpp-nano')
        self.query_embed = torch.nn.Embedding(2, 2)
        self.neck = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2))


PARAMWISE = dict(
    norm_decay_mult=0.0,
    bias_decay_mult=0.5,
    custom_keys={
        'backbone': dict(lr_mult=0.1),
        'position_bias': dict(decay_mult=0.0),
        'query_embed': dict(decay_mult=0.0),
    },
)


def groups(constructor, **paramwise):
    model = Model()
    wrapper = build_optim_wrapper(
        model,
        dict(
            constructor=constructor,
            optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.5),
            paramwise_cfg=paramwise,
        ),
    )
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {names[id(group['params'][0])]: group for group in wrapper.optimizer.param_groups}
    return {name: (group['lr'], group['weight_decay']) for name, group in found.items()}


def test_every_rule_that_fits_holds():
    found = groups('dat_mm.JointRulesOptimWrapperConstructor', **PARAMWISE)
    assert found['neck.0.weight'] == (1.0, 0.5)
    assert found['neck.0.bias'] == (1.0, 0.25)
    assert found['neck.1.weight'] == (1.0, 0.0)
    assert found['query_embed.weight'] == (1.0, 0.0)
    inside = {name: value for name, value in found.items() if name.startswith('backbone.')}
    assert {rate for rate, _ in inside.values()} == {0.1}
    for name, (_, decay) in inside.items():
        free = 'position_bias' in name or 'norm' in name
        assert decay == (0.0 if free else 0.25 if name.endswith('.bias') else 0.5), name
    assert any('neighborhood_bias_table' in name for name in inside)


def test_mmengines_own_constructor_lets_one_key_decide():
    """The reason for ours: norms of the backbone are decayed, and tables have the whole rate."""
    found = groups('DefaultOptimWrapperConstructor', **PARAMWISE)
    assert found['backbone.norm3.weight'] == (0.1, 0.5)
    assert {value for name, value in found.items() if 'position_bias' in name} == {(1.0, 0.0)}


def test_without_keys_nothing_changes():
    plain = {key: value for key, value in PARAMWISE.items() if key != 'custom_keys'}
    ours, mmengines = (
        groups(name, **plain) for name in ('dat_mm.JointRulesOptimWrapperConstructor', 'DefaultOptimWrapperConstructor')
    )
    assert ours == mmengines
