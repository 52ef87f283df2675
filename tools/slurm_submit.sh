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
# Written by tools/slurm_submit.sh. 75 is the exit code of a run that was asked to stop and wants to go on.
export PYTHONPATH=$(printf '%q' "$PYTHONPATH")
echo "== \$(date '+%F %T') job \$SLURM_JOB_ID, start \$((\${SLURM_RESTART_COUNT:-0} + 1)), on \$SLURM_JOB_NODELIST"
srun --kill-on-bad-exit=1 --output=$(printf '%q' "$work_dir")/slurm-%j-\${SLURM_RESTART_COUNT:-0}.log \\
   $(printf ' %q' ${srun_args[@]+"${srun_args[@]}"} "${command[@]}") &
step=\$!
# a signal to this script, as at the end of its time, is not lost and goes to the run
trap 'scancel --signal=USR1 \$SLURM_JOB_ID' USR1 TERM
while :; do
    code=0
    wait \$step || code=\$?
    kill -0 \$step 2>/dev/null || break
done
echo "== \$(date '+%F %T') the run ended with \$code"
# 143: a task that was slower to leave than the first was ended by srun
if [ \$code = 75 ] || { [ \$code = 143 ] && [ -e $(printf '%q' "$work_dir")/interrupted.pth ]; }; then
    # Slurm ends this script as it queues the job again; one that left before would count as failed
    scontrol requeue \$SLURM_JOB_ID && sleep 60
fi
exit \$code
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
