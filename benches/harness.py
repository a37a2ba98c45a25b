"""lm-evaluation-harness and this program score the same rows with the same model, in turns: medians of seconds, ratios.

    cargo build --release
    python benches/harness.py MODEL DATA --tasks boolq piqa boolq+piqa+hellaswag [--limit 100] [--repeat 3] [--threads 2]

MODEL is a folder of Hugging Face, DATA the folder of the published sets (`boolq/validation.jsonl`, …). A job is a task, or
several joined by `+`. Python needs lm_eval, torch and transformers. The harness's tasks are its own YAML files with
`dataset_path: json` over the same rows; nothing is fetched. Both sides work in float32 on the CPU, each in its own process.

The harness scores one request at a time unless it is told otherwise. The larger batches of `--batches` are tried once, and where
the fastest of them beats that it gets a row of its own. Its scoring seconds are those inside `lm.loglikelihood` (tokens made,
batches sorted, the model run); ours are the whole `evaluate` stage, rows read and tables written. Whole seconds are those of the
process. The harness keeps the tables it makes of the rows from one run to the next, as it does for its users; this program begins
anew each time. Where the two sides count differently by more than one document, or the choices' log likelihoods do not sum up
alike, nothing is reported: the row would compare two jobs.

The last column is how many processors other programs kept busy meanwhile. PyTorch's threads wait for each other by spinning:
where they must share processors the harness takes many times as long. A row with more than about 0.1 there says nothing."""

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
    """The harness's task over the rows of DATA: its own file, included, and another source."""
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
    path.write_text(json.dumps(config))  # YAML holds JSON
    return str(path)


def harness_once():
    """The harness in this process: seconds inside `loglikelihood`, and what every task came to."""
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
    """Seconds of now, seconds that all processors have worked, and how many of these were for this script's processes."""
    with open("/proc/stat") as file:
        user, nice, system, _, _, interrupts, soft = (int(ticks) for ticks in file.readline().split()[1:8])
    sides = resource.getrusage(resource.RUSAGE_CHILDREN)
    worked = (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK")
    return time.perf_counter(), worked, sides.ru_utime + sides.ru_stime


def process(command, environment=None):
    """Standard output and seconds of a process that must succeed."""
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
    """This program with a fresh folder of results: nothing is kept from the time before."""
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
    """The harness's metrics over as many documents here, at most one document counted differently, and as likely choices:
    of a few rows, models that have nothing in common may count alike."""
    if not theirs["metrics"]:
        raise SystemExit("the harness gave neither acc nor acc_norm: there is nothing to compare")
    for metric, (value, n) in theirs["metrics"].items():
        own, own_n = here["metrics"].get(metric, (0.0, 0))
        if n != own_n or round(abs(value - own) * n) > 1:
            raise SystemExit(f"{metric}: {value} of {n} documents in the harness, {own} of {own_n} here: not the same job")
    if abs(theirs["likelihood"] - here["likelihood"]) > 1e-4 * abs(theirs["likelihood"]):
        raise SystemExit(f"log likelihood {theirs['likelihood']} in the harness, {here['likelihood']} here: not the same job")


def compare(job, folder):
    """The rows of one job; the times of the trials are not counted."""
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
