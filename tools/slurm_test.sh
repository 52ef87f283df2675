#!/usr/bin/env bash
# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# slurm_test.sh PARTITION JOB_NAME CONFIG CHECKPOINT [options of test.py]
# GPUS in all (8), GPUS_PER_NODE (8, or GPUS if fewer), CPUS_PER_TASK (5), SRUN_ARGS.
# On nodes without GPUs: GPUS=0, TASKS in all (1) and TASKS_PER_NODE (TASKS).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
fourth=CHECKPOINT tool=test.py
source "$here/slurm_arguments.sh"
exec srun \
    --partition="$partition" \
    --job-name="$job_name" \
    "${tasks[@]}" \
    --kill-on-bad-exit=1 \
    ${srun_args[@]+"${srun_args[@]}"} \
    "${PYTHON:-python}" -u "$here/test.py" "$config" "$place" --launcher slurm "$@"
