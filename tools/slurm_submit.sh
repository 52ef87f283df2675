#!/usr/bin/env bash
# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# slurm_submit.sh PARTITION JOB_NAME CONFIG WORK_DIR [options of train.py]
# Writes WORK_DIR/job.sh and submits it. The run goes on by itself after a preemption, at the end of its time and after
# the failure of a node. GPUS, GPUS_PER_NODE, TASKS, TASKS_PER_NODE, CPUS_PER_TASK, SRUN_ARGS as in slurm_train.sh;
# SBATCH_ARGS for sbatch; WARNING, the seconds before its end at which Slurm warns the run (120).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
fourth=WORK_DIR tool=train.py
source "$here/slurm_arguments.sh"
work_dir=$place
read -r -a sbatch_args <<<"${SBATCH_ARGS:-}"
mkdir -p "$work_dir"
job=$work_dir/job.sh
command=("${PYTHON:-python}" -u "$here/train.py" "$config" --work-dir "$place" --launcher slurm --resume "$@")
cat >"$job" <<SCRIPT
#!/usr/bin/env bash
# Written by tools/slurm_submit.sh.
export PYTHONPATH=$(printf '%q' "$PYTHONPATH")
source $(printf '%q' "$here/slurm_requeue.sh")
run_and_requeue $(printf '%q' "$work_dir")/interrupted.pth \\
    srun --kill-on-bad-exit=1 --output=$(printf '%q' "$work_dir")/slurm-%j-\${SLURM_RESTART_COUNT:-0}.log \\
   $(printf ' %q' ${srun_args[@]+"${srun_args[@]}"} "${command[@]}")
SCRIPT
exec sbatch \
    --partition="$partition" \
    --job-name="$job_name" \
    "${tasks[@]}" \
    --requeue \
    --open-mode=append \
    --output="$work_dir/slurm-%j.log" \
    --signal=B:USR1@"${WARNING:-120}" \
    ${sbatch_args[@]+"${sbatch_args[@]}"} \
    "$job"
