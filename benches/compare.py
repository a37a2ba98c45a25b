"""Compares this program with PyTorch on the CPU: median seconds and peak memory of every job, and their ratios.

    cargo build --release --example speed --example random_model
    target/release/examples/random_model MODEL --shape 110m
    python benches/compare.py MODEL [--repeat 5] [--layers 2 11] [--jobs forward lora …] [--blocks 1024 288]

Python needs torch, transformers and peft. The two programs run each job alternately, PyTorch first. The memory limit of this
program (`[run] memory`) is a share of the peak that PyTorch needed: the target of the job."""

import argparse
import os
import statistics
import subprocess
import sys

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("--repeat", type=int, default=5)
parser.add_argument("--before", type=int, default=1, help="times that a job is done before it is timed")
parser.add_argument("--layers", nargs=2, default=["2", "11"])
parser.add_argument("--jobs", nargs="*", default=["forward", "element-first", "element-mixed", "lora"])
parser.add_argument("--blocks", nargs="*", default=[])
arguments = parser.parse_args()

here = os.path.dirname(os.path.abspath(__file__))
# Targets of each job: the share of PyTorch's time, and of its memory.
reach = {
    "block": (1.0, None),
    "forward": (1.0, None),
    "vector": (0.95, 1 / 3),
    "element-first": (0.95, 1 / 3),
    "element-mixed": (0.4, 1 / 4),
    "lora": (1.0, 1 / 2),
}


def run(command):
    """The seconds that the process prints for its job, and its peak memory in GiB."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    seconds = process.stdout.read().split()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return float(seconds[-1]), usage.ru_maxrss / 2**20


print("| job | other side | | this program | | ratio | |")
print("|---|---|---|---|---|---|---|")
for job, target in [("block", width) for width in arguments.blocks] + [(job, arguments.model) for job in arguments.jobs]:
    times = ["3", "9"] if job == "block" else [str(arguments.before), "1"]
    common = ["--times", *times, "--layers", *arguments.layers, job, target]
    others, ours = [], []
    for _ in range(arguments.repeat):
        others.append(run([sys.executable, os.path.join(here, "pytorch.py"), *common]))
        share = reach[job][1]
        limit = ["--memory", f"{max(memory for _, memory in others) * share * 2**30:.0f}"] if share else []
        ours.append(run([os.path.join(here, "..", "target", "release", "examples", "speed"), *limit, *common]))
    theirs_s, ours_s = (statistics.median(seconds for seconds, _ in side) for side in (others, ours))
    theirs_m, ours_m = (max(memory for _, memory in side) for side in (others, ours))
    name = f"block {target}" if job == "block" else job
    print(
        f"| {name} | {theirs_s:.3f} s | {theirs_m:.2f} GiB | {ours_s:.3f} s | {ours_m:.2f} GiB "
        f"| {ours_s / theirs_s:.2f} of the time | {ours_m / theirs_m:.2f} of the memory |",
        flush=True,
    )
