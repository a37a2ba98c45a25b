#!/usr/bin/env bash
# Holds a GPU against the processor: every operation, forward and backward, and a whole tiny pipeline: scores, updates, log
# likelihoods within the tolerances that the tests state, pruned units equal, and the same bytes in two runs. Without a GPU it
# says so, loudly, and compares nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

if ! gpus=$(nvidia-smi --query-gpu=name,compute_cap --format=csv,noheader 2>&1); then
    echo "SKIPPED: no GPU was compared with the processor: nvidia-smi does not find one (${gpus##*: })" >&2
    exit 0
fi
echo "== comparing with GPU 0 of: $gpus"
CUDA_ARCH=${CUDA_ARCH:-$(head -n 1 <<<"${gpus##*, }")}
export CUDA_ARCH
# one at a time: they share the GPU
scripts/build_cuda.sh test -- --nocapture --test-threads 1 ops:: devices::
