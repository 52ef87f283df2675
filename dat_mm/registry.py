# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Registries below those of mmengine, so that ``type='dat_mm.NAME'`` works in the configs of every toolbox."""

try:
    from mmengine import registry as parents
except ImportError as error:
    raise ImportError(
        'configs need mmengine and the OpenMMLab toolboxes: pip install "dat-mm[openmmlab]" for the upstream packages, '
        'or "dat-mm[onedl]" for the maintained forks (docs/install.md); dat_mm.DAT and dat_mm.ops need torch alone'
    ) from error

MODELS = parents.Registry('model', parent=parents.MODELS, scope='dat_mm', locations=['dat_mm.models.toolboxes'])
DATASETS = parents.Registry('dataset', parent=parents.DATASETS, scope='dat_mm', locations=['dat_mm.datasets.toolboxes'])
HOOKS = parents.Registry('hook', parent=parents.HOOKS, scope='dat_mm', locations=['dat_mm.visualize.hook'])
RUNNERS = parents.Registry(
    'runner',
    parent=parents.RUNNERS,
    build_func=parents.RUNNERS.build_func,
    scope='dat_mm',
    locations=['dat_mm.engine.runner'],
)
OPTIM_WRAPPER_CONSTRUCTORS = parents.Registry(
    'optimizer wrapper constructor',
    parent=parents.OPTIM_WRAPPER_CONSTRUCTORS,
    scope='dat_mm',
    locations=['dat_mm.engine.layer_decay', 'dat_mm.engine.joint_rules'],
)
VISUALIZERS = parents.Registry(
    'visualizer', parent=parents.VISUALIZERS, scope='dat_mm', locations=['dat_mm.visualize.panoptic']
)
