#!/usr/bin/env bash
# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# dist_test.sh CONFIG CHECKPOINT GPUS [options of test.py]
# Several machines: NNODES, NODE_RANK, MASTER_ADDR and PORT, the same on all but NODE_RANK.
set -euo pipefail
if [ $# -lt 3 ]; then
    echo "usage: $0 CONFIG CHECKPOINT GPUS [options of test.py]" >&2
    exit 2
fi
here=$(cd "$(dirname "$0")" && pwd)
config=$1 checkpoint=$2 gpus=$3
shift 3
PYTHONPATH="$here/..${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$gpus" \
    "$here/test.py" "$config" "$checkpoint" --launcher pytorch "$@"
