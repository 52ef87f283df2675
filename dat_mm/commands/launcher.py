# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Joining and leaving the group of processes that a launcher started."""

import os

from ..errors import UserError


def set_launcher(cfg, launcher: str, local_rank: int = 0) -> None:
    """Says how the processes of a run find each other, and joins them on the CPU.

    On GPUs mmengine's Runner starts the group of processes. On the CPU it cannot, so the group starts here, over gloo.
    """
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
    """Ends the group of processes, whose threads would abort a process that exits with them running."""
    import torch.distributed as dist

    if launcher != 'none' and dist.is_initialized():
        dist.destroy_process_group()
