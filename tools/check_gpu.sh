#!/usr/bin/env bash
# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# On a machine with a GPU, meant for 8 minutes: tests of the kernels, then every GPU row of the benchmark.
# Needs torch, triton, timm, numpy, pytest and mmengine, but no installation: run it in the repository.
# tools/check_gpu.sh [DIR]   results go to DIR (docs/benchmarks); PYTHON=... names another python3
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}

"$python" -m pytest tests/ops/test_fused.py tests/ops/test_backends.py tests/models/test_golden.py \
    -k 'test_fused or triton or export or checkpointing' -p no:cacheprovider
tests=$?
"$python" tools/benchmark.py --suite gpu --out "${1:-docs/benchmarks}" || exit 1
exit $tests
