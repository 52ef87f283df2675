# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""What tools/train.py does: it trains the model of a config."""

from logging import WARNING

from mmengine.logging import print_log

from ..engine.checkpoints import read_meta
from ..engine.processes import leave_group
from ..errors import UserError
from .precision import cast_for_bfloat16
from .prepare import prepare


def add_tensorboard(cfg) -> None:
    """Logs to TensorBoard, beside what the config logs to."""
    visualizer = cfg.get('visualizer')
    if visualizer is None:
        cfg.visualizer = visualizer = dict(type='Visualizer', vis_backends=[dict(type='LocalVisBackend')])
    backends = list(visualizer.get('vis_backends') or [])
    if not any(backend['type'] == 'TensorboardVisBackend' for backend in backends):
        cfg.visualizer.vis_backends = [*backends, dict(type='TensorboardVisBackend')]


def leave_out_validation(cfg) -> None:
    """Removes all that validates, and the best checkpoint, which needs a metric to be chosen by."""
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    checkpoint = cfg.get('default_hooks', {}).get('checkpoint')
    if checkpoint:
        checkpoint.pop('save_best', None)


def scale_learning_rate(cfg) -> None:
    """Turns on the scaling of the learning rate by the batch, which the runner does."""
    if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
        raise UserError(f'--auto-scale-lr: {cfg.filename} does not say auto_scale_lr.base_batch_size')
    cfg.auto_scale_lr.enable = True


def set_randomness(cfg, seed, deterministic: bool) -> None:
    """Sets what the command line says about seed and determinism, and leaves the rest to the config."""
    randomness = dict(cfg.get('randomness') or {})
    if seed is not None:
        randomness['seed'] = seed
    if deterministic:
        randomness['deterministic'] = True
    cfg.randomness = randomness


def set_resume(cfg, resume) -> None:
    """Goes on from a checkpoint, which is read to see that it is one of a training, or for 'auto' from the last one."""
    cfg.resume = True
    cfg.load_from = None if resume == 'auto' else resume
    if resume != 'auto':
        read_meta(resume)


def train_config(
    config,
    *,
    resume=None,
    auto_scale_lr=False,
    no_validate=False,
    tensorboard=False,
    seed=None,
    deterministic=False,
    **options,
):
    """Prepares the config of a training; `options` are those of `prepare` that tools/train.py has too."""

    def edit(cfg):
        if no_validate:
            leave_out_validation(cfg)
        if auto_scale_lr:
            scale_learning_rate(cfg)
        if tensorboard:
            add_tensorboard(cfg)
        if seed is not None or deterministic:
            set_randomness(cfg, seed, deterministic)
        if resume is not None:
            set_resume(cfg, resume)

    phases = ('train',) if no_validate else ('train', 'val')
    return prepare(config, edit=edit, phases=phases, training=True, **options)


def _tell_start(cfg) -> None:
    """Says in the log that the backbone starts from random weights, where it does, and how it would not."""
    if cfg.get('load_from') or cfg.get('resume'):
        return
    init = (cfg.model.get('backbone') or {}).get('init_cfg')
    if not isinstance(init, dict) or init.get('type') != 'Pretrained':  # else the backbone tells
        key = 'model.backbone.init_cfg'
        options = f'{key}.type=Pretrained {key}.checkpoint=PATH'
        print_log(f'The backbone starts from scratch; from a checkpoint with --cfg-options {options}', logger='current')


def _train_by_strategy(cfg):
    """Trains with a strategy of mmengine, such as FSDP, by the runner that has them."""
    from mmengine.runner._flexible_runner import FlexibleRunner

    from ..engine import sharding  # noqa: F401  (registers it)
    from ..engine.checkpoints import latest_checkpoint
    from ..engine.hanging import watch

    for key in ('skip_bad_objects', 'skip_bad_samples', 'skip_nonfinite_losses'):
        if cfg.get(key) is not None:
            raise UserError(f'{key}={cfg[key]}: a run with a strategy ({cfg.strategy.type}) has no such limit')
    cfg.setdefault('env_cfg', {})  # which this runner cannot do without
    if cfg.get('resume') and not cfg.get('load_from'):
        last = latest_checkpoint(cfg.work_dir, lambda line: print_log(line, 'current', WARNING))
        cfg.load_from, cfg.resume = (str(last), True) if last else (None, False)
    runner = FlexibleRunner.from_cfg(cfg)
    with watch(runner):
        model = runner.train()
    leave_group()
    return model


def train(config, **options):
    """Trains the model of a config and returns it; the options are those of tools/train.py."""
    cfg = train_config(config, **options)
    if cfg.get('strategy'):
        return _train_by_strategy(cfg)
    from ..engine.runner import Runner

    runner = Runner.from_cfg(cfg)
    if cfg.optim_wrapper.get('dtype') == 'bfloat16':
        cast_for_bfloat16(runner.model)
    _tell_start(cfg)
    model = runner.train()
    leave_group()
    return model
