# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What tools/train.py does."""

from mmengine.logging import print_log

from ..engine.checkpoints import read_meta
from ..errors import UserError
from .checks import check_data, check_weights
from .config import (
    fix_workers,
    import_toolbox,
    leave_launcher,
    load_config,
    set_launcher,
    set_loader_defaults,
    set_work_dir,
)
from .precision import cast_focal_losses, set_precision


def add_tensorboard(cfg) -> None:
    """TensorBoard beside what the config logs to."""
    visualizer = cfg.get('visualizer')
    if visualizer is None:
        cfg.visualizer = visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
    backends = list(visualizer.get('vis_backends') or [])
    if not any(backend['type'] == 'TensorboardVisBackend' for backend in backends):
        cfg.visualizer.vis_backends = [*backends, dict(type='TensorboardVisBackend')]


def train_config(
    config,
    *,
    work_dir=None,
    resume=None,
    amp=False,
    amp_dtype=None,
    auto_scale_lr=False,
    no_validate=False,
    tensorboard=False,
    seed=None,
    deterministic=False,
    cfg_options=(),
    launcher='none',
    local_rank=0,
):
    """The config of a run, all options merged and everything it reads found to be there."""
    cfg = load_config(config, cfg_options)
    import_toolbox(cfg)
    set_work_dir(cfg, work_dir)
    set_loader_defaults(cfg)
    fix_workers(cfg)
    set_precision(cfg, amp, amp_dtype)
    if no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        checkpoint = cfg.get('default_hooks', {}).get('checkpoint')
        if checkpoint:
            checkpoint.pop('save_best', None)
    if auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise UserError(f'--auto-scale-lr: {config} does not say auto_scale_lr.base_batch_size')
        cfg.auto_scale_lr.enable = True
    if tensorboard:
        add_tensorboard(cfg)
    if seed is not None or deterministic:
        randomness = dict(cfg.get('randomness') or {})
        randomness.update(
            {'seed': seed} if seed is not None else {}, **({'deterministic': True} if deterministic else {})
        )
        cfg.randomness = randomness
    if resume is not None:
        cfg.resume = True
        cfg.load_from = None if resume == 'auto' else resume
    if resume not in (None, 'auto'):
        read_meta(resume)
    check_data(cfg, ('train',) if no_validate else ('train', 'val'))
    check_weights(cfg)
    set_launcher(cfg, launcher, local_rank)
    return cfg


def _tell_start(cfg) -> None:
    if cfg.get('load_from') or cfg.get('resume'):
        return
    init = (cfg.model.get('backbone') or {}).get('init_cfg')
    if not isinstance(init, dict) or init.get('type') != 'Pretrained':  # else the backbone tells
        key = 'model.backbone.init_cfg'
        options = f'{key}.type=Pretrained {key}.checkpoint=PATH'
        print_log(f'The backbone starts from scratch; from a checkpoint with --cfg-options {options}', logger='current')


def train(config, **options):
    """Trains the model of a config; the options are those of tools/train.py."""
    cfg = train_config(config, **options)
    from ..engine.runner import Runner

    runner = Runner.from_cfg(cfg)
    if cfg.optim_wrapper.get('dtype') == 'bfloat16':
        cast_focal_losses(runner.model)
    _tell_start(cfg)
    model = runner.train()
    leave_launcher(cfg.launcher)
    return model
