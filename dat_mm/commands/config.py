# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""From a command line to a config that a Runner can be built from."""

import os
from importlib import import_module
from pathlib import Path

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.logging import print_log
from mmengine.registry import init_default_scope

from ..errors import UserError

TOOLBOXES = {'mmdet': 'mmdet', 'mmseg': 'mmsegmentation', 'mmpretrain': 'mmpretrain'}
# What a config may be without and a user may well set.
OPTIONAL_KEYS = {
    *('activation_checkpointing', 'auto_scale_lr', 'compile', 'custom_hooks', 'data_root', 'env_cfg', 'load_from'),
    *('experiment_name', 'find_unused_parameters', 'randomness', 'resume', 'sync_bn', 'vis_backends', 'work_dir'),
}


def parse_options(options) -> dict:
    """['a.b=1', 'c=x'] -> {'a.b': 1, 'c': 'x'}, the values read as the toolboxes read them."""
    parsed = {}
    for option in options or ():
        key, equals, value = option.partition('=')
        if not (key and equals):
            raise UserError(f'--cfg-options {option}: not of the form key=value')
        try:
            parsed[key] = DictAction._parse_iterable(value)
        except (AssertionError, ValueError) as error:
            raise UserError(f'--cfg-options {option}: {error}') from error
    return parsed


def load_config(path, options=()) -> Config:
    """The config with the options merged in; `data_root` moves every data set of it."""
    if not Path(path).is_file():
        raise UserError(f'{path}: no such config file')
    if Path(path).suffix not in ('.py', '.json', '.yaml', '.yml'):
        raise UserError(f'{path} is no config: the name must end in .py, .json, .yaml or .yml')
    cfg = Config.fromfile(path)
    options = parse_options(options)
    for key in {option.split('.')[0] for option in options}:
        if key not in cfg and key not in OPTIONAL_KEYS:
            print_log(f'--cfg-options: {path} has no {key!r}, it is added', logger='current')
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, IndexError, AssertionError) as error:
        raise UserError(f'--cfg-options {" ".join(options)}: {error}') from error
    if 'data_root' in options:
        from .data_root import set_data_root

        try:
            set_data_root(cfg, options['data_root'])
        except ValueError as error:
            raise UserError(f'--cfg-options data_root={options["data_root"]}: {error}') from error
    return cfg


def import_toolbox(cfg) -> str:
    """Imports the toolbox of the config's scope and makes it the current one."""
    scope = cfg.get('default_scope')
    if scope not in TOOLBOXES:
        raise UserError(f'{cfg.filename}: default_scope={scope!r} is not one of {", ".join(TOOLBOXES)}')
    try:
        import_module(f'{scope}.utils').register_all_modules(init_default_scope=False)
    except (ImportError, AssertionError) as error:  # AssertionError: the toolbox refuses the version of mmcv
        reason = str(error).splitlines()[0]
        raise UserError(f'{cfg.filename} needs {TOOLBOXES[scope]}, which does not import: {reason}') from error
    init_default_scope(scope)
    return scope


def set_work_dir(cfg, work_dir=None) -> None:
    """Command line, else config, else work_dirs/ by the name of the config."""
    if work_dir is not None:
        cfg.work_dir = str(work_dir)
    elif cfg.get('work_dir') is None:
        cfg.work_dir = os.path.join('work_dirs', Path(cfg.filename).stem)


def set_launcher(cfg, launcher: str, local_rank: int = 0) -> None:
    """Several processes: on GPUs mmengine starts the group; on the CPU it cannot, so it is started here, on gloo."""
    from mmengine.device import get_device

    cfg.launcher = launcher
    os.environ.setdefault('LOCAL_RANK', str(local_rank))
    if launcher == 'none' or get_device() != 'cpu':
        return
    import torch.distributed as dist

    if launcher != 'pytorch':
        raise UserError(f'--launcher {launcher} needs GPUs; on the CPU use tools/dist_train.sh')
    missing = [name for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT') if name not in os.environ]
    if missing:
        raise UserError(f'--launcher pytorch: {", ".join(missing)} not set; start through tools/dist_train.sh')
    if not dist.is_initialized():
        dist.init_process_group('gloo')


def leave_launcher(launcher: str) -> None:
    """Ends the group of processes: its threads abort a process that exits with them."""
    import torch.distributed as dist

    if launcher != 'none' and dist.is_initialized():
        dist.destroy_process_group()


def set_loader_defaults(cfg) -> None:
    """What mmpretrain's own tools put into every data loader."""
    if cfg.get('default_scope') != 'mmpretrain':
        return
    for phase in ('train', 'val', 'test'):
        loader = cfg.get(f'{phase}_dataloader')
        if loader:
            loader.setdefault('collate_fn', ConfigDict(type='default_collate'))
            loader.setdefault('pin_memory', True)
            loader.setdefault('persistent_workers', loader.get('num_workers', 0) > 0)


def fix_workers(cfg) -> None:
    """torch refuses persistent workers where there are none, which is what num_workers=0 on a command line asks for."""
    for phase in ('train', 'val', 'test'):
        loader = cfg.get(f'{phase}_dataloader')
        if loader and not loader.get('num_workers'):
            loader.persistent_workers = False
            loader.pop('prefetch_factor', None)
