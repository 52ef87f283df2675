# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Joining the group of processes that a launcher started."""

import os
import subprocess

import torch

from ..errors import UserError

FIRST_PORT, PORTS = 20000, 12000  # below the ports that Linux gives to outgoing connections


def set_launcher(cfg, launcher: str, local_rank: int = 0) -> None:
    """Says how the processes of a run find each other, and joins them on the CPU.

    On GPUs mmengine's Runner starts the group of processes. On the CPU it cannot, so the group starts here, over gloo.
    """
    from mmengine.device import get_device

    if launcher == 'slurm':
        os.environ.update(from_slurm(os.environ, torch.cuda.device_count()))
        launcher = 'pytorch'  # by these variables: mmengine's own way has the n-th task of a node use its n-th GPU
    cfg.launcher = launcher
    os.environ.setdefault('LOCAL_RANK', str(local_rank))
    if launcher == 'none' or get_device() != 'cpu':
        return
    import torch.distributed as dist

    if launcher == 'mpi':
        raise UserError('--launcher mpi needs GPUs; on the CPU use tools/dist_train.sh or tools/slurm_train.sh')
    missing = [name for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT') if name not in os.environ]
    if missing:
        raise UserError(f'--launcher pytorch: {", ".join(missing)} not set; start through tools/dist_train.sh')
    if not dist.is_initialized():
        dist.init_process_group('gloo')


def from_slurm(environment, gpus: int = 0) -> dict[str, str]:
    """Translates the variables of a task of Slurm that sees so many GPUs into those that torch.distributed reads.

    The tasks of a node see all GPUs of the job there and take one each, or a task sees its own alone, as with
    --gpus-per-task=1. The first node of the step is the meeting point, unless MASTER_ADDR names another. The port
    follows from the job and the step, so that two of them on one node do not meet; MASTER_PORT has the last word.
    """
    names = ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_LOCALID', 'SLURM_JOB_ID')
    missing = [name for name in names if name not in environment]
    if missing:
        raise UserError(f'--launcher slurm: {", ".join(missing)} not set; start through tools/slurm_train.sh or srun')
    step = environment.get('SLURM_STEP_ID', '0')
    return dict(
        RANK=environment['SLURM_PROCID'],
        WORLD_SIZE=environment['SLURM_NTASKS'],
        LOCAL_RANK=str(int(environment['SLURM_LOCALID']) % gpus) if gpus else environment['SLURM_LOCALID'],
        MASTER_PORT=environment.get('MASTER_PORT')
        or str(FIRST_PORT + (31 * int(environment['SLURM_JOB_ID']) + int(step)) % PORTS),
        MASTER_ADDR=environment.get('MASTER_ADDR') or first_host(environment),
    )


def first_host(environment) -> str:
    """Asks Slurm for the first node of the step, whose list may be written as node[1-4,7]."""
    nodes = environment.get('SLURM_STEP_NODELIST') or environment.get('SLURM_JOB_NODELIST', '')
    if nodes and not set(nodes) & set('[,'):
        return nodes
    try:
        shown = subprocess.run(['scontrol', 'show', 'hostnames', nodes], capture_output=True, text=True, check=True)
        return shown.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise UserError(f'--launcher slurm: scontrol does not tell the nodes of {nodes!r}; set MASTER_ADDR') from error
