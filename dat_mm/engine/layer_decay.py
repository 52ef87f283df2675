# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Learning rates that fall from the last layer to the first, for fine-tuning in any toolbox."""

from mmengine.optim import DefaultOptimWrapperConstructor

from ..registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor with one more key of paramwise_cfg: layer_decay_rate.

    The learning rate of a parameter n layers before the last is multiplied by layer_decay_rate**n. The backbone's
    method get_layer_depth says to which layer a parameter belongs.
    """

    def add_params(self, params, module, prefix='', is_dcn_module=None):
        super().add_params(params, module, prefix, is_dcn_module)
        rate = self.paramwise_cfg.get('layer_decay_rate')
        if prefix or rate is None:  # the base class recurses; all groups are there only at the top
            return
        backbone = getattr(module, 'backbone', module)
        if not hasattr(backbone, 'get_layer_depth'):
            raise ValueError(f'layer_decay_rate={rate}: {type(backbone).__name__} has no get_layer_depth')
        start = 'backbone.' if backbone is not module else ''
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        for group in params:
            (parameter,) = group['params']
            depth, layers = backbone.get_layer_depth(names[id(parameter)], start)
            group['lr'] = group.get('lr', self.base_lr) * rate ** (layers - 1 - depth)
