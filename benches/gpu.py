"""Both sides of every job on a GPU in turns, in float32 and in float16: medians of seconds, ratios, shares spent in products.

    random_model /tmp/7b4 --shape 7b --layers 4 --half
    python benches/gpu.py SPEED /tmp/7b4 [--device cuda:0] [--rounds 5] [--json FILE]

SPEED is the example `speed`, built with the feature `cuda`; `random_model` is an example too. The model has the shapes of
LLaMA-7B (hidden 4096, MLP 11008, 32 heads) in 4 blocks. Python needs torch with CUDA, transformers and PEFT (`pytorch.py`
beside this file is the other side). Every run is a process of its own that does the job a few times before it times it
(`--times`); the sides swap their order every round. The products of each job alone are timed once per side, after its rounds.

A row is printed when its job is done, and FILE written anew, so what stops early keeps what it has. `--device cpu` tries this
file without a GPU. A job that one side fails is reported and left out, and the exit code is 1."""

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
# in a process of its own: this one must hold nothing on the GPU
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
`forward` is a pass over all rows (here with the log probability of every token, there the logits alone); `element-first` the
importance of every attention and MLP channel of all layers, one pass forward and back (there every parameter asks for its
gradient, as in LLM-Pruner); `lora` a whole update, rank 8 on all seven matrices. f32: TF32 is off in PyTorch. f16: weights in
float16; in `lora` PyTorch keeps the adapters in float32, under autocast, with a GradScaler. In products: the seconds of the job's
products of activations and weights alone, over those of the job; attention's own products are not among them."""


def nvidia_smi(query, uuid):
    """The answer's lines, or none where it cannot be asked."""
    try:
        command = ["nvidia-smi", f"--query-{query}", "--format=csv,noheader", "-i", uuid]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[:-1]
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"nvidia-smi: {error}", file=sys.stderr)
        return []


def warn_of_others(facts):
    """Between our own runs nobody should be on the GPU."""
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
    """Seconds that the process says its job takes."""
    layers = ["--layers", "0", str(config["num_hidden_layers"]), "--threads", arguments.threads]
    size = ["--rows", str(arguments.rows), "--length", str(arguments.length), "--times", *arguments.times]
    command = [*sides[side], job, arguments.model, "--device", arguments.device, "--precision", precision, *size, *layers, *more]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not done.stdout.strip():
        raise RuntimeError(f"exit code {done.returncode}: {' '.join(command)}\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def compare(job, precision):
    """The seconds of both sides, round by round, and of their products."""
    seconds = {side: [] for side in sides}
    for at in range(arguments.rounds):
        for side in sorted(sides, reverse=at % 2 == 0):  # PyTorch first, then ours first, …
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
