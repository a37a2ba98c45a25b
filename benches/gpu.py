"""Compares this program with PyTorch on a GPU, in float32 and float16: median seconds of every job, ratios, shares of matrix products.

    random_model /tmp/7b4 --shape 7b --layers 4 --half
    python benches/gpu.py SPEED /tmp/7b4 [--device cuda:0] [--rounds 5] [--json FILE]

SPEED is the example `speed`, built with the feature `cuda`; `random_model` is an example too. The model has the shapes of
LLaMA-7B (hidden 4096, MLP 11008, 32 heads) with 4 blocks. Python needs torch with CUDA, transformers and PEFT (`pytorch.py`
beside this file is the PyTorch side). Every run is its own process, which runs the job several times before it is timed
(`--times`); the order of the two programs alternates. After the rounds of a job, its matrix products are timed once per program.

A row is printed, and FILE written again, after each job, so an interrupted run keeps its results. `--device cpu` tries this
script without a GPU. If one program fails a job, the job is reported and left out, and the exit code is 1."""

import argparse
import json
import os
import statistics
import subprocess
import sys

parser = argparse.ArgumentParser()
parser.add_argument("speed", help="the example `speed`")
parser.add_argument("model", help="a folder of `random_model`")
parser.add_argument("--device", default="cuda:0")
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--times", nargs=2, default=["3", "9"], help="times that a process does its job before, and timed")
parser.add_argument("--rows", type=int, default=8)
parser.add_argument("--length", type=int, default=512)
parser.add_argument("--threads", default="2")
parser.add_argument("--jobs", nargs="+", default=["forward", "element-first", "lora"])
parser.add_argument("--precisions", nargs="+", default=["f32", "f16"])
parser.add_argument("--json", metavar="FILE", help="the seconds of every run")
arguments = parser.parse_args()

here = os.path.dirname(os.path.abspath(__file__))
with open(os.path.join(arguments.model, "config.json")) as file:
    config = json.load(file)
sides = {"ours": [arguments.speed], "pytorch": [sys.executable, os.path.join(here, "pytorch.py")]}
# Run in a process of its own, so that this one allocates nothing on the GPU.
FACTS = """
import json, sys, peft, torch, transformers
facts = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
if sys.argv[1] != "cpu" and torch.cuda.is_available():
    gpu = torch.cuda.get_device_properties(sys.argv[1])
    uuid = "GPU-" + str(gpu.uuid).removeprefix("GPU-")
    facts |= {"gpu": torch.cuda.get_device_name(sys.argv[1]), "uuid": uuid, "cuda": torch.version.cuda}
print(json.dumps(facts))
"""
NOTE = """
`forward`: a pass over all rows (this program computes the log probability of every token, PyTorch only the logits).
`element-first`: the importance of every attention and MLP channel of all layers, one forward and one backward pass (in PyTorch
every parameter gets a gradient, as in LLM-Pruner). `lora`: one update, rank 8 on all seven matrices. f32: TF32 is off in
PyTorch. f16: weights in float16; in `lora` PyTorch keeps the adapters in float32, under autocast, with a GradScaler. In products:
the time of the job's products of activations and weights alone, divided by that of the job, without those inside attention."""


def nvidia_smi(query, uuid):
    """The lines that nvidia-smi prints; an empty list if it cannot be run."""
    try:
        command = ["nvidia-smi", f"--query-{query}", "--format=csv,noheader", "-i", uuid]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"nvidia-smi: {error}", file=sys.stderr)
        return []


def warn_of_others(facts):
    """Warns if another process uses the GPU between the runs."""
    for process in nvidia_smi("compute-apps=pid,name,used_memory", facts["uuid"]) if "uuid" in facts else []:
        print(f"warning: another process uses the GPU, times may not hold: {process}", file=sys.stderr)


def describe():
    facts = subprocess.run([sys.executable, "-c", FACTS, arguments.device], stdout=subprocess.PIPE, text=True)
    if facts.returncode:
        raise SystemExit(f"python needs torch, transformers and peft, and {arguments.device} must exist")
    facts = json.loads(facts.stdout.splitlines()[-1])
    where = "CPU"
    if arguments.device != "cpu":
        if "gpu" not in facts:
            raise SystemExit(f"no GPU that PyTorch {facts['torch']} can use; `--device cpu` tries this file without one")
        facts["driver"] = "".join(nvidia_smi("gpu=driver_version", facts["uuid"])[:1]) or "unknown"
        where = f"{facts['gpu']}, driver {facts['driver']}, CUDA {facts['cuda']} (PyTorch's)"
    print(f"{where}; PyTorch {facts['torch']}, transformers {facts['transformers']}, PEFT {facts['peft']}.", end=" ")
    print(
        f"hidden {config['hidden_size']}, MLP {config['intermediate_size']}, {config['num_attention_heads']} heads "
        f"({config['num_key_value_heads']} key/value), {config['num_hidden_layers']} layers, vocabulary {config['vocab_size']}; "
        f"{arguments.rows} × {arguments.length} tokens; importance of all layers; "
        f"medians of {arguments.rounds} rounds, each the median of {arguments.times[1]} after {arguments.times[0]}.\n"
    )
    return facts


def run(side, job, precision, *more):
    """The seconds that the process prints for its job."""
    layers = ["--layers", "0", str(config["num_hidden_layers"]), "--threads", arguments.threads]
    size = ["--rows", str(arguments.rows), "--length", str(arguments.length), "--times", *arguments.times]
    command = [*sides[side], job, arguments.model, "--device", arguments.device, "--precision", precision, *size, *layers, *more]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not done.stdout.strip():
        raise RuntimeError(f"exit code {done.returncode}: {' '.join(command)}\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def compare(job, precision):
    """The seconds of both programs in each round, and those of their matrix products."""
    seconds = {side: [] for side in sides}
    for at in range(arguments.rounds):
        for side in sorted(sides, reverse=at % 2 == 0):  # the order alternates, PyTorch first
            seconds[side].append(run(side, job, precision))
    return seconds, {side: run(side, job, precision, "--products") for side in sides}


facts, done, failed = describe(), [], False
print("| job | precision | this program, s | PyTorch, s | ratio | this program, tokens/s | in products | PyTorch, in products |")
print("|---|---|---|---|---|---|---|---|", flush=True)
for job in arguments.jobs:
    for precision in arguments.precisions:
        warn_of_others(facts)
        try:
            seconds, products = compare(job, precision)
        except (RuntimeError, ValueError) as error:
            failed = True
            print(f"{job} {precision} left out, {error}", file=sys.stderr, flush=True)
            continue
        ours, theirs = (statistics.median(seconds[side]) for side in ("ours", "pytorch"))
        shares = f"{products['ours'] / ours:.0%} | {products['pytorch'] / theirs:.0%}"
        speed = f"{arguments.rows * arguments.length / ours:,.0f}"
        print(f"| {job} | {precision} | {ours:.4f} | {theirs:.4f} | {ours / theirs:.2f} | {speed} | {shares} |", flush=True)
        done.append({"job": job, "precision": precision, "seconds": seconds, "products": products})
        if arguments.json:
            with open(arguments.json, "w") as file:
                json.dump({"facts": facts, "config": config, "options": vars(arguments), "runs": done}, file, indent=1)
warn_of_others(facts)
print(NOTE)
sys.exit(failed)
