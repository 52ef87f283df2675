# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
"""Leaving the group of processes of a distributed run."""

import atexit
import os
import sys

import torch.distributed as dist

_ending = False


def leave_group(status: int = 0) -> None:
    """Ends the group of processes, and has this process end with `status` once Python's own exit handlers have run.

    What comes after these handlers is the teardown of libraries. With gloo it aborts a process now and then, since its
    threads may still run, and Slurm would take the run for a failed one. Without a group nothing is changed.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        atexit.register(_end, status)


def _end(status: int) -> None:
    global _ending
    if _ending:
        return
    _ending = True
    atexit._run_exitfuncs()  # those that were registered earlier
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
