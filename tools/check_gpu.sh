#!/usr/bin/env bash
# Copyright (c) The dat_mm authors. SPDX-License-Identifier: Apache-2.0
# On a machine with a GPU, at most 7.5 minutes: the doctor, the tests of the kernels, then the GPU rows of the benchmark.
# Needs torch, triton, timm, numpy, pytest and mmengine, but no installation: run it in the repository.
# tools/check_gpu.sh [DIR]   results go to DIR (docs/benchmarks), after each stage; PYTHON=... names another python3
# DEVICE=cpu rehearses it where there is no GPU: the same stages on the CPU, with the smallest cases.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
out=${1:-docs/benchmarks}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$out"
failed=()
slow=

# stage NAME SECONDS COMMAND...: what it prints is in OUT/check-NAME.log too; its failure or its end does not stop the next
stage() {
    local name=$1 limit=$2 start=$SECONDS code=0
    shift 2
    echo "== $name, $limit s at most${slow:+, $slow times that in a rehearsal} (at $SECONDS s)"
    timeout --kill-after=10 $((limit * ${slow:-1})) "$@" 2>&1 | tee "$out/check-$name.log" || code=$?
    if [ $code != 0 ]; then failed+=("$name ($code)"); fi
    echo "== $name ended with $code after $((SECONDS - start)) s"
}

tests=(tests/ops/test_fused.py tests/ops/test_calls.py tests/ops/test_backends.py tests/ops/test_proof.py tests/models/test_golden.py)
only='(test_fused or test_calls or triton or kernels or export or checkpointing) and not compile_for_gpus'
benchmark=(--suite gpu)
parallel=()
if "$python" -c 'import xdist' 2>/dev/null; then parallel=(-n 8); fi
if [ "${DEVICE:-cuda}" = cpu ]; then
    tests=(tests/ops/test_fused.py)
    only='keep_to_their_tensors and float32'
    benchmark=(--archs dat-nano --sizes 64 --quick)
    parallel=()
    slow=5 # the cores may have much else to do
fi
stage imports 30 "$python" -c 'import numpy, pytest, timm, torch, triton, mmengine; print(torch.__version__, triton.__version__)'
stage doctor 90 "$python" tools/doctor.py --only ops --device "${DEVICE:-cuda}" --json "$out/check-doctor.json"
stage tests 120 "$python" -m pytest "${tests[@]}" -k "$only" -p no:cacheprovider ${parallel[@]+"${parallel[@]}"}
stage benchmark 210 "$python" tools/benchmark.py "${benchmark[@]}" --out "$out"
if [ ${#failed[@]} -gt 0 ]; then
    echo "== failed: ${failed[*]}; $SECONDS s in all, the results are in $out"
    exit 1
fi
echo "== all stages passed; $SECONDS s in all, the results are in $out"
