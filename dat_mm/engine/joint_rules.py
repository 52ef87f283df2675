# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Learning rates and weight decays by rules that hold together, where mmengine lets one key switch off all others."""

from math import prod

from mmengine.optim import DefaultOptimWrapperConstructor

from ..registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class JointRulesOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor, but all custom_keys that are part of a parameter's name multiply what else holds for it.

    With mmengine's own the longest key decides alone: a key `backbone` that lowers a rate takes norm_decay_mult and
    the other rules away from all that the backbone has.
    """

    def add_params(self, params, module, prefix='', is_dcn_module=None):
        if prefix:  # the base class recurses; keys count once all groups are there
            return super().add_params(params, module, prefix, is_dcn_module)
        cfg = self.paramwise_cfg
        keys = cfg.get('custom_keys', {})
        self.paramwise_cfg = {key: value for key, value in cfg.items() if key != 'custom_keys'}
        try:
            super().add_params(params, module, prefix, is_dcn_module)
        finally:
            self.paramwise_cfg = cfg
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        for group in params:
            (parameter,) = group['params']
            rules = [rule for key, rule in keys.items() if key in names[id(parameter)]]
            group['lr'] = group.get('lr', self.base_lr) * prod(rule.get('lr_mult', 1) for rule in rules)
            if self.base_wd is not None:
                decay = prod(rule.get('decay_mult', 1) for rule in rules)
                group['weight_decay'] = group.get('weight_decay', self.base_wd) * decay
