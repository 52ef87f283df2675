# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# What the Slurm scripts share, which source it with `fourth`, the name of their fourth argument, and `tool`, the tool
# that gets the options after it: the four arguments, the options about tasks from the environment in the arrays `tasks`
# and `srun_args`, and PYTHONPATH with this clone in it.
# shellcheck shell=bash disable=SC2034,SC2154
if [ $# -lt 4 ]; then
    echo "usage: $0 PARTITION JOB_NAME CONFIG $fourth [options of $tool]" >&2
    exit 2
fi
partition=$1 job_name=$2 config=$3 place=$4
shift 4
gpus=${GPUS:-8}
if [ "$gpus" = 0 ]; then
    count=${TASKS:-1}
    per_node=${TASKS_PER_NODE:-$count}
    tasks=()
else
    count=$gpus
    per_node=${GPUS_PER_NODE:-$((gpus < 8 ? gpus : 8))}
    tasks=(--gres=gpu:"$per_node")
fi
tasks+=(--nodes=$(((count + per_node - 1) / per_node)) --ntasks="$count" --ntasks-per-node="$per_node")
tasks+=(--cpus-per-task="${CPUS_PER_TASK:-5}")
read -r -a srun_args <<<"${SRUN_ARGS:-}"
export PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}"
