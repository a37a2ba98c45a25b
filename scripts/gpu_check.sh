#!/usr/bin/env bash
# All checks that need a GPU, in two steps, so that the machine with the GPU needs neither Rust nor the CUDA toolkit.
#
#   scripts/gpu_check.sh prepare [--no-toolkit] [FOLDER]   build and pack, on any machine        (FOLDER: target/gpu-check)
#   scripts/gpu_check.sh run [FOLDER]                      check, on the machine with the GPU
#
# `prepare` builds with scripts/build_cuda.sh (CUDA_ARCH=9.0 for an H100, 8.0 if it is not set) and leaves one folder of at
# most 60 MB: the programs, the tests, the pipeline, the small model, and a copy of this script. `--no-toolkit` builds with
# dfdx's `ci-check` instead: it tests the packing without nvcc, and the programs cannot use a GPU.
#
# `run` needs the NVIDIA driver, cuBLAS and NVRTC (an installed PyTorch has the last two). It takes at most eight minutes:
#   0. device      checks that the program sees the GPU
#   1. operations  compares every operation and gradient with the CPU
#   2. pipelines   compares whole pipelines with the CPU
#   3. bytes       runs pipelines/ablation.toml twice, each with an empty cache: all tables and weights must be equal
#   4. speed       compares with PyTorch (benches/gpu.py), if python3 has torch, transformers and peft
# It writes gpu-report.md into the working directory; without a GPU the report says SKIPPED. Exit code: 0 passed or skipped,
# 1 a check failed, 2 wrong arguments.
set -euo pipefail

SIZE_LIMIT_MB=60
here=$(cd "$(dirname "$0")" && pwd)

usage() {
    sed -n '4,5s/^# *//p' "$0" >&2
    exit 2
}

# Prints the paths of the test executables that a cargo command builds, one per line.
test_executables() {
    "$@" --message-format=json | sed -nE 's/.*"executable":"([^"]+)".*/\1/p'
}

prepare() {
    local build=("$here/build_cuda.sh") features=cuda
    if [[ ${1:-} == --no-toolkit ]]; then
        build=(cargo) features=cuda,ci-check
        shift
    fi
    cd "$here/.."
    local target=${CARGO_TARGET_DIR:-target}
    local folder=${1:-$target/gpu-check}
    rm -rf "$folder"
    mkdir -p "$folder/bin" "$folder/scripts" "$folder/benches"

    local options=()
    [[ $features == cuda ]] || options=(--release --locked --features "$features")
    "${build[@]}" build "${options[@]}" --bin runner --example speed --example random_model
    cp "$target/release/runner" "$target/release/examples/"{speed,random_model} "$folder/bin"
    test_executables "${build[@]}" test "${options[@]}" --no-run -p secateur-tensor --lib >"$folder/tests"
    cp "$(tail -n 1 "$folder/tests")" "$folder/bin/operations"
    test_executables "${build[@]}" test "${options[@]}" --no-run --test main >"$folder/tests"
    cp "$(tail -n 1 "$folder/tests")" "$folder/bin/pipelines"
    rm "$folder/tests"

    strip "$folder/bin/"*
    gzip -9 "$folder/bin/"*
    cp -R models datasets pipelines "$folder"
    cp benches/gpu.py benches/pytorch.py "$folder/benches"
    cp "$0" "$folder/scripts"
    local size
    size=$(du -sm "$folder" | cut -f 1)
    if ((size > SIZE_LIMIT_MB)); then
        echo "$folder takes $size MB; at most $SIZE_LIMIT_MB MB may travel" >&2
        exit 1
    fi
    echo "== $folder: $size MB. On the machine with the GPU: $folder/scripts/gpu_check.sh run"
}

# Runs one check with a time limit, and appends its outcome and the end of its output to the report.
#   check NAME SECONDS COMMAND...
check() {
    local name=$1 seconds=$2 begin=$SECONDS code=0
    shift 2
    echo "== $name"
    timeout "$seconds" "$@" >"$work/$name.log" 2>&1 || code=$?
    local outcome="passed"
    ((code == 0)) || outcome="FAILED (exit code $code)"
    ((code != 124)) || outcome="FAILED (not done after $seconds s)"
    ((code == 0)) || failed=1
    {
        printf '\n## %s: %s, %d s\n\n```text\n' "$name" "$outcome" $((SECONDS - begin))
        tail -n 60 "$work/$name.log"
        printf '```\n'
    } | tee -a "$report"
}

# Prints the folders of cuBLAS and NVRTC that an installed PyTorch brings, separated by colons.
pytorch_libraries() {
    python3 - <<'PYTHON' 2>/dev/null || true
import glob, os, site
folders = {os.path.dirname(path) for root in [*site.getsitepackages(), site.getusersitepackages()]
           for name in ("libcublas.so*", "libnvrtc.so*") for path in glob.glob(f"{root}/nvidia/**/{name}", recursive=True)}
print(":".join(sorted(folders)))
PYTHON
}

# Runs the ablation twice, each with an empty cache; every table and every weight file must have the same bytes.
same_bytes_twice() {
    local turn
    for turn in first second; do
        "$work/bin/runner" pipelines/ablation.toml --set run.device=cuda:0 --set "run.cache=$work/cache-$turn" \
            --results "$work/results-$turn"
        (cd "$work/results-$turn" && find . -type f \( -name '*.parquet' -o -name '*.safetensors' \) -print0 | sort -z |
            xargs -0 sha256sum) >"$work/$turn.sums"
    done
    [[ -s $work/first.sums ]] || { echo "no results were written"; return 1; }
    diff "$work/first.sums" "$work/second.sums" && echo "$(wc -l <"$work/first.sums") files, equal in both runs"
}

speed() {
    "$work/bin/random_model" "$work/7b4" --shape 7b --layers 4 --half
    python3 benches/gpu.py "$work/bin/speed" "$work/7b4" --rounds 3 --times 2 5 --json "$work/speed.json"
}

run() {
    local folder=${1:-$here/..}
    report=$PWD/gpu-report.md failed=0
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    local gpus
    if ! gpus=$(nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv,noheader 2>&1); then
        echo "SKIPPED: nothing was checked on a GPU: nvidia-smi does not find one (${gpus##*: })" | tee "$report"
        return 0
    fi
    printf '# GPU check, %s\n\nGPU 0 of: %s\n' "$(date -u +%F)" "$gpus" | tee "$report"
    cd "$folder"
    cp -R bin "$work"
    gunzip "$work/bin/"*
    chmod +x "$work/bin/"*
    local libraries
    libraries=$(pytorch_libraries)
    export LD_LIBRARY_PATH=${libraries:+$libraries:}${LD_LIBRARY_PATH:-}
    # Tell the tests where the program and the project's files are; their defaults are the paths of the build machine.
    export SECATEUR_RUNNER=$work/bin/runner SECATEUR_ROOT=$PWD
    # One test at a time, because they share the GPU.
    # the program must see the GPU, or the tests would be ignored
    check device 20 "$work/bin/runner" check pipelines/ablation.toml --set run.device=cuda:0
    check operations 60 "$work/bin/operations" --nocapture --test-threads 1 ops::
    export -f pipelines same_bytes_twice speed
    export work
    check pipelines 90 bash -euo pipefail -c pipelines
    check bytes 120 bash -euo pipefail -c same_bytes_twice
    if python3 -c 'import torch, transformers, peft' 2>/dev/null; then
        check speed 190 bash -euo pipefail -c speed
    else
        printf '\n## speed: SKIPPED\n\npython3 has no torch, transformers and peft.\n' | tee -a "$report"
    fi
    echo "== $report"
    return "$failed"
}

case ${1:-} in
prepare) prepare "${@:2}" ;;
run) run "${@:2}" ;;
*) usage ;;
esac
