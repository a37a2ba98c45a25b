#!/usr/bin/env bash
# Builds the program for an NVIDIA GPU on a machine without GPU and CUDA, such as a CI machine. The arguments are a cargo
# command with its options; default: `build`. Needs Rust, a C++ compiler, Python with pip, and 400 MB of disk. It reads two
# environment variables:
#
#   CUDA_PATH  the folder of the toolkit. If there is none, the parts that the build needs are installed into it: bin/nvcc,
#              include, lib64. Default: target/cuda.
#   CUDA_ARCH  the compute capability of the GPU: 9.0 for an H100, 8.9 for an RTX 4090. Default: 8.0. The driver compiles
#              the kernels for the GPU that it finds, so they run on this capability and every later one.
set -euo pipefail
CUDA_PATH=${CUDA_PATH:+$(realpath --canonicalize-missing "$CUDA_PATH")}
cd "$(dirname "$0")/.."
CUDA_PATH=${CUDA_PATH:-$PWD/target/cuda}
CUDA_ARCH=${CUDA_ARCH:-8.0}
if ! [[ $CUDA_ARCH =~ ^[0-9]+\.[0-9]$ ]]; then
    echo "CUDA_ARCH is a compute capability such as 8.0, not \"$CUDA_ARCH\"" >&2
    exit 2
fi

# All parts are of one CUDA release, because a driver refuses kernels of a newer compiler. 13.0 is the first release whose parts
# pip installs into one folder, and of these it needs the oldest driver (580).
PARTS=(nvidia-cuda-nvcc==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-nvvm==13.0.88 # nvcc and the programs that it calls
    nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85)                    # cuda.h, cuda_fp16.h; nv/target

work=$(mktemp -d)
parts=
trap 'rm -rf "$work" ${parts:+"$parts"}' EXIT

# A folder with nvcc counts as a complete toolkit, so nvcc is moved there last.
install_toolkit() {
    echo "== CUDA's compiler and headers go to $CUDA_PATH"
    local pip=(python3 -m pip)
    mkdir -p "$CUDA_PATH/lib64"
    parts=$(mktemp -d "$CUDA_PATH/parts.XXXXXX")
    if ! "${pip[@]}" --version >"$work/pip" 2>&1; then
        python3 -m venv "$work/python"
        pip=("$work/python/bin/python3" -m pip)
    fi
    "${pip[@]}" install --quiet --disable-pip-version-check --no-deps --target "$parts" "${PARTS[@]}"
    make_stubs
    mv "$parts/nvidia/cu13/bin/nvcc" "$parts/nvcc"
    cp -R "$parts"/nvidia/cu13/{nvvm,include,bin} "$CUDA_PATH"
    mv "$parts/nvcc" "$CUDA_PATH/bin/nvcc"
}

# The linker needs CUDA's libraries by name. The program opens the real ones when it uses a GPU
# (crates/secateur-tensor/src/cuda/libraries.rs), so empty ones suffice here. A function that is called but missing there fails
# this link.
make_stubs() {
    local library
    for library in cuda nvrtc cublas cublasLt; do
        cc -shared -o "$CUDA_PATH/lib64/lib$library.so" -x c /dev/null
    done
}

[[ -x $CUDA_PATH/bin/nvcc && -f $CUDA_PATH/include/cuda.h ]] || install_toolkit

# dfdx's build script runs nvidia-smi to find the compute capability.
printf '#!/bin/sh\nprintf "compute_cap\\n%s\\n"\n' "$CUDA_ARCH" >"$work/nvidia-smi"
chmod +x "$work/nvidia-smi"

export CUDA_PATH CUDA_COMPUTE_CAP=${CUDA_ARCH/./}
PATH="$work:$CUDA_PATH/bin:$PATH" cargo "${1:-build}" --release --locked --features cuda "${@:2}"

major=$("$CUDA_PATH/bin/nvcc" --version | sed -nE 's/.* release ([0-9]+)\..*/\1/p')
cat <<EOF

== ${CARGO_TARGET_DIR:-target}/release/runner, for compute capability $CUDA_ARCH and later
   It starts anywhere. To use a GPU it needs NVIDIA's driver (libcuda.so.1), and where the loader finds them libcublas.so.$major
   and libcublasLt.so.$major (package nvidia-cublas), libnvrtc.so.$major and its libnvrtc-builtins (nvidia-cuda-nvrtc, of no later
   release than the driver).
EOF
