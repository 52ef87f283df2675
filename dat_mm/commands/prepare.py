# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""From a command line to a config that a Runner can be built from: the steps, in the one order that is right."""

import os
from importlib import import_module
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.registry import init_default_scope

from ..engine.checkpoints import read_safely
from ..engine.memory import keep_freed_memory
from ..errors import UserError
from .checks import check_data, check_packages, check_weights
from .config import PHASES, load_config
from .launcher import set_launcher
from .precision import set_precision

TOOLBOXES = {'mmdet': 'mmdet', 'mmseg': 'mmsegmentation', 'mmpretrain': 'mmpretrain'}


def prepare(
    config,
    cfg_options=(),
    *,
    edit=None,
    phases=(),
    training=False,
    amp=False,
    amp_dtype=None,
    work_dir=None,
    launcher='none',
    local_rank=0,
) -> Config:
    """Reads a config and makes it ready for a Runner; train, test, browse_data and infer all begin with it.

    `edit` is called with the config, to change what the options of that command ask for. `phases` are those whose data
    the command loads. `training` says that it trains, so that precision and initial weights matter.
    """
    if get_device() == 'cpu':  # before anything large is made
        keep_freed_memory()
    read_safely()  # before anything that loads weights is built
    # options, data_root among them, before all other changes: every step below reads what they change
    cfg = load_config(config, cfg_options)
    # whatever is built from the config is looked up in the registries of its toolbox
    import_toolbox(cfg)
    set_work_dir(cfg, work_dir)
    # before `edit`, which may change the data loader of the phase
    check_phase(cfg, phases)
    # after cfg_options, so that an option of the command has the last word over an option of the config
    if edit is not None:
        edit(cfg)
    if phases:  # without, an inferencer reads the data loaders, and wants them as they are written
        # when nothing sets a number of workers any more: both look at it, and the second corrects the first
        set_loader_defaults(cfg)
        fix_workers(cfg)
    if training:
        set_precision(cfg, amp, amp_dtype)
    # when no path changes any more, and before anything slow
    check_packages(cfg, phases)
    check_data(cfg, phases)
    if training:
        check_weights(cfg)
    # last: the processes of a run wait for each other here, and none of them may stop before
    set_launcher(cfg, launcher, local_rank)
    return cfg


def import_toolbox(cfg) -> None:
    """Imports the toolbox of the config's scope and makes the scope the current one."""
    scope = cfg.get('default_scope')
    if scope not in TOOLBOXES:
        raise UserError(f'{cfg.filename}: default_scope={scope!r} is not one of {", ".join(TOOLBOXES)}')
    try:
        import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)
    except (ImportError, AssertionError) as error:  # AssertionError: the toolbox refuses the version of mmcv
        reason = str(error).splitlines()[0]
        raise UserError(f'{cfg.filename} needs {TOOLBOXES[scope]}, which does not import: {reason}') from error
    init_default_scope(scope)


def set_work_dir(cfg, work_dir=None) -> None:
    """Sets the work dir to that of the command line, else of the config, else work_dirs/ and the config's name."""
    if work_dir is not None:
        cfg.work_dir = str(work_dir)
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('work_dirs', Path(cfg.filename).stem)


def check_phase(cfg, phases) -> None:
    """Raises unless the config has data for the first phase; validation, which comes second, may be left out."""
    for phase in phases[:1]:
        if not cfg.get(f'{phase}_dataloader'):
            raise UserError(f'{cfg.filename} has no {phase}_dataloader')


def set_loader_defaults(cfg) -> None:
    """Sets in the data loaders of mmpretrain what its own tools set there."""
    if cfg.get('default_scope') != 'mmpretrain':
        return
    for phase in PHASES:
        loader = cfg.get(f'{phase}_dataloader')
        if loader:
            loader.setdefault('collate_fn', ConfigDict(type='default_collate'))
            loader.setdefault('pin_memory', True)
            loader.setdefault('persistent_workers', loader.get('num_workers', 0) > 0)


def fix_workers(cfg) -> None:
    """Turns persistent workers off where there are none, as after num_workers=0: torch refuses the two together."""
    for phase in PHASES:
        loader = cfg.get(f'{phase}_dataloader')
        if loader and not loader.get('num_workers'):
            loader.persistent_workers = False
            loader.pop('prefetch_factor', None)
