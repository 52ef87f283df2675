# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# What a job script of Slurm does with a run, which it passes to `run_and_requeue`: it is asked to stop when the job is,
# and the job is queued again when the run wants to go on, by the exit code 75, or by `mark`, a file that it leaves.
# shellcheck shell=bash
run_and_requeue() {
    local mark=$1 code step before job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}
    before=$(written "$mark") # one of an earlier start says nothing of this one
    # the number of one task of an array is also that of the whole array
    job+=${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
    shift
    echo "== $(date '+%F %T') job $job, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST"
    "$@" &
    step=$!
    # a signal to this script, as at the end of its time, is not lost and goes to the run
    trap "scancel --signal=USR1 $job" USR1 TERM
    while :; do
        code=0
        wait $step || code=$?
        kill -0 $step 2>/dev/null || break
    done
    echo "== $(date '+%F %T') the run ended with $code"
    # 143: a task that was slower to leave than the first was ended by srun
    if [ $code = 75 ] || { [ $code = 143 ] && [ -e "$mark" ] && [ "$(written "$mark")" != "$before" ]; }; then
        # Slurm ends this script as it queues the job again; one that left before would count as failed
        scontrol requeue "$job" && sleep 60
    fi
    return $code
}

# When a file was written, and which it is; nothing where there is none.
written() {
    stat -c '%y %i' "$1" 2>/dev/null || true
}
