#!/usr/bin/env bash
# Compares a GPU with the CPU: every operation, forward and backward, and a small pipeline. Scores, updates and log likelihoods
# must agree within the tolerances of the tests, the pruned units must be equal, and two runs must give the same bytes. Without
# a GPU it prints SKIPPED and compares nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! gpus=$(nvidia-smi --query-gpu=name,compute_cap --format=csv,noheader 2>&1); then
    echo "SKIPPED: no GPU was compared with the CPU: nvidia-smi does not find one (${gpus##*: })" >&2
    exit 0
fi
echo "== comparing with GPU 0 of: $gpus"
CUDA_ARCH=${CUDA_ARCH:-$(head -n 1 <<<"${gpus##*, }")}
export CUDA_ARCH
# One test at a time, because they share the GPU.
scripts/build_cuda.sh test -- --nocapture --test-threads 1 ops:: devices::
