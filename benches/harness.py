"""Compares this program with lm-evaluation-harness on the same rows and the same model: median seconds and ratios.

    cargo build --release
    python benches/harness.py MODEL DATA --tasks boolq piqa boolq+piqa+hellaswag [--limit 100] [--repeat 3] [--threads 2]

MODEL is a Hugging Face folder, DATA the folder of the published sets (`boolq/validation.jsonl`, …). A job is a task, or
several joined by `+`. Python needs lm_eval, torch and transformers. The harness's tasks are its own YAML files with
`dataset_path: json` over the same rows; nothing is downloaded. Both programs compute in float32 on the CPU, alternately, each
in its own process.

The harness scores one request at a time unless a batch size is set. The larger batches of `--batches` are tried once, and the
fastest of them gets its own row if it is faster than batch 1. Scoring seconds of the harness are those inside
`lm.loglikelihood` (tokenisation, sorting, the model); those of this program are the whole `evaluate` stage, including reading
rows and writing tables. Whole seconds are those of the process. The harness keeps its converted rows between runs, as it does
for its users; this program starts without stored products. If accuracies differ by more than one document, or the sums of log
likelihoods differ, the script stops: the programs did not run the same job.

The last column is the number of processors that other programs kept busy meanwhile. PyTorch's threads wait for each other by
spinning, so the harness slows down many times if it shares processors. Ignore rows with more than about 0.1 there."""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("model")
parser.add_argument("data", type=Path)
parser.add_argument("--tasks", nargs="+", default=["boolq", "piqa"])
parser.add_argument("--limit", type=int, help="the first rows of each task; default: all")
parser.add_argument("--repeat", type=int, default=3)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--batches", nargs="*", type=int, default=[8, 16], help="the harness's batch sizes beside 1")
parser.add_argument("--runner", default="target/release/runner")
parser.add_argument("--one", type=int, metavar="BATCH", help="only the harness, once, in this process: prints JSON")
arguments = parser.parse_args()


def local_task(manager, name, folder):
    """A task file that includes the harness's own and reads the rows of DATA."""
    split = "test" if (arguments.data / name / "test.jsonl").exists() else "validation"
    config = {
        "include": str(manager.task_index[name].yaml_path),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {split: str((arguments.data / name / f"{split}.jsonl").resolve())}},
        "training_split": None,
        "validation_split": None,
        "test_split": None,
        f"{split}_split": split,
    }
    path = Path(folder) / f"{name}.yaml"
    path.write_text(json.dumps(config))  # JSON is valid YAML
    return str(path)


def harness_once():
    """Runs the harness in this process; prints the seconds inside `loglikelihood` and the metrics of every task."""
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    torch.set_num_threads(arguments.threads)
    lm = HFLM(pretrained=arguments.model, dtype="float32", device="cpu", batch_size=arguments.one)
    scored, seconds, likelihoods = lm.loglikelihood, [], []

    def timed(*requests, **options):
        began = time.perf_counter()
        answers = scored(*requests, **options)
        seconds.append(time.perf_counter() - began)
        likelihoods.extend(likelihood for likelihood, _ in answers)
        return answers

    lm.loglikelihood = timed
    manager = TaskManager()
    with tempfile.TemporaryDirectory() as folder:
        names = [local_task(manager, name, folder) for name in arguments.tasks]
        tasks = list(manager.load(names)["tasks"].values())
        done = simple_evaluate(model=lm, tasks=tasks, limit=arguments.limit, log_samples=False, task_manager=manager)
    metrics = {
        f"{task} {metric}": [values[f"{metric},none"], done["n-samples"][task]["effective"]]
        for task, values in done["results"].items()
        for metric in ("acc", "acc_norm")
        if f"{metric},none" in values
    }
    print("\n" + json.dumps({"scoring": sum(seconds), "likelihood": sum(likelihoods), "metrics": metrics}))


def busy():
    """The current time, the busy seconds of all processors, and those of this script's child processes."""
    with open("/proc/stat") as file:
        user, nice, system, _, _, interrupts, soft = (int(ticks) for ticks in file.readline().split()[1:8])
    sides = resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), worked, sides.ru_utime + sides.ru_stime


def process(command, environment=None):
    """Runs a process; returns its standard output and its seconds, and ends the script if it fails."""
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"failed: {' '.join(command)}\n{done.stderr[-2000:]}")
    return done.stdout, time.perf_counter() - began


def harness(tasks, batch, folder):
    threads = str(arguments.threads)
    limit = ["--limit", str(arguments.limit)] if arguments.limit else []
    command = [sys.executable, __file__, arguments.model, str(arguments.data), "--tasks", *tasks, "--threads", threads]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": f"{folder}/rows"}
    environment = {**os.environ, **offline, "OMP_NUM_THREADS": threads, "RAYON_NUM_THREADS": threads}
    output, whole = process([*command, *limit, "--one", str(batch)], environment)
    return {**json.loads(output.splitlines()[-1]), "whole": whole}


def ours(tasks, folder):
    """Runs this program with an empty results folder, so that no stored product is reused."""
    import pyarrow.parquet

    with tempfile.TemporaryDirectory(dir=folder) as results:
        pipeline = Path(folder) / "harness.toml"
        limit = f"limit = {arguments.limit}" if arguments.limit else ""
        pipeline.write_text(f"""[run]
data = {json.dumps(str(arguments.data.resolve()))}
results = {json.dumps(results)}
threads = {arguments.threads}

[[stage]]
type = "load"
model = {json.dumps(os.path.abspath(arguments.model))}

[[stage]]
type = "evaluate"
tasks = {json.dumps(tasks)}
{limit}
""")
        _, whole = process([arguments.runner, str(pipeline)])
        [manifest] = Path(results).glob("harness/*/manifest.json")
        [stage] = [stage for stage in json.loads(manifest.read_text())["stages"] if stage["stage"] == "evaluate"]
        rows = pyarrow.parquet.read_table(manifest.parent / "evaluate.parquet").to_pylist()
        samples = pyarrow.parquet.read_table(manifest.parent / "evaluate_samples.parquet", columns=["loglikelihood"])
    metrics = {f"{row['task']} {row['metric']}": [row["value"], row["n"]] for row in rows}
    likelihood = sum(samples["loglikelihood"].to_pylist())
    return {"scoring": stage["wall_seconds"], "likelihood": likelihood, "metrics": metrics, "whole": whole}


def must_agree(theirs, here):
    """Ends the script unless both programs have the same document counts, metrics within one document, and equal sums of log
    likelihoods; with few rows the metrics alone could agree by chance."""
    if not theirs["metrics"]:
        raise SystemExit("the harness gave neither acc nor acc_norm: there is nothing to compare")
    for metric, (value, n) in theirs["metrics"].items():
        own, own_n = here["metrics"].get(metric, (0.0, 0))
        if n != own_n or round(abs(value - own) * n) > 1:
            raise SystemExit(f"{metric}: {value} of {n} documents in the harness, {own} of {own_n} here: not the same job")
    if abs(theirs["likelihood"] - here["likelihood"]) > 1e-4 * abs(theirs["likelihood"]):
        raise SystemExit(f"log likelihood {theirs['likelihood']} in the harness, {here['likelihood']} here: not the same job")


def compare(job, folder):
    """Runs one job and prints its rows; the runs that find the fastest batch are not counted."""
    tasks = job.split("+")
    fastest = min(arguments.batches, key=lambda batch: harness(tasks, batch, folder)["scoring"], default=1)
    others, here, before = {1: [], fastest: []}, [], busy()
    for _ in range(arguments.repeat):
        for batch, runs in others.items():
            runs.append(harness(tasks, batch, folder))
        here.append(ours(tasks, folder))
        for runs in others.values():
            must_agree(runs[-1], here[-1])
    wall, worked, sides = (after - at_first for after, at_first in zip(busy(), before))
    times = {batch: [middle(runs, key) for key in ("scoring", "whole")] for batch, runs in others.items()}
    own = [middle(here, key) for key in ("scoring", "whole")]
    for batch, theirs in times.items():
        if batch == 1 or theirs[0] < times[1][0]:
            pairs = (f"{a:.2f} | {b:.2f} | {b / a:.3f}" for a, b in zip(theirs, own))
            print(f"| {job}, batch {batch} | {' | '.join(pairs)} | {max(0.0, worked - sides) / wall:.2f} |", flush=True)


def middle(runs, key):
    return statistics.median(run[key] for run in runs)


if arguments.one:
    harness_once()
else:
    print("| job | harness, scoring s | this program | ratio | harness, whole s | this program | ratio | others |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for job in arguments.tasks:
            compare(job, folder)
