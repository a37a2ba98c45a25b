"""The other side of the measurements: the same jobs in plain PyTorch, transformers and PEFT, as LLM-Pruner does them.

    python benches/pytorch.py JOB MODEL [--layers FROM TO] [--times BEFORE TIMED] [--threads 2]

prints the median seconds of one job. Loading is not timed. Importance follows LLM-Pruner's own steps: every parameter asks for
its gradient; the second-order forms go through the samples one by one first, and add the squares of each one's gradients to a
buffer beside every parameter; then the whole batch, and scores of every member of every group from the gradients."""

import argparse
import json
import os
import time

parser = argparse.ArgumentParser()
parser.add_argument("job", choices=["block", "forward", "vector", "element-first", "element-mixed", "lora"])
parser.add_argument("model")
parser.add_argument("--layers", nargs=2, type=int, default=[2, 11])
parser.add_argument("--times", nargs=2, type=int, default=[1, 1])
parser.add_argument("--threads", type=int, default=2)
arguments = parser.parse_args()
os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402  (threads are set before)

torch.set_num_threads(arguments.threads)


def timed(job):
    for _ in range(arguments.times[0]):
        job()
    seconds = []
    for _ in range(max(1, arguments.times[1])):
        began = time.perf_counter()
        job()
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[len(seconds) // 2]


def block(width):
    """A LLaMA block of transformers, 8 sequences of 128: forward and backward, weights' gradients included."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    head_dim = 48 if width == 288 else 64
    mlp = -(-(width * 8 // 3) // 64) * 64
    heads = width // head_dim
    config = LlamaConfig(hidden_size=width, intermediate_size=mlp, num_attention_heads=heads, num_key_value_heads=heads)
    config._attn_implementation = "sdpa"
    layer, rotary = LlamaDecoderLayer(config, 0), LlamaRotaryEmbedding(config)
    x = torch.randn(8, 128, width, requires_grad=True)
    positions = torch.arange(128)[None]
    upstream = torch.ones(8, 128, width)

    def job():
        layer.zero_grad(set_to_none=True)
        x.grad = None
        y = layer(x, position_embeddings=rotary(x, positions), attention_mask=None)
        (y[0] if isinstance(y, tuple) else y).backward(upstream)

    return timed(job)


def load():
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)


def rows(name):
    with open(os.path.join(arguments.model, name)) as file:
        return torch.tensor([json.loads(line)["ids"] for line in file])


def forward():
    model, ids = load(), rows("rows-8x128.jsonl")

    def job():
        with torch.no_grad():
            model(ids, use_cache=False).logits

    return timed(job)


def members(model):
    """The members of every group: (weight, axis of its channels)."""
    for layer in range(*arguments.layers):
        attention, mlp = model.model.layers[layer].self_attn, model.model.layers[layer].mlp
        yield [(attention.q_proj, 0), (attention.k_proj, 0), (attention.v_proj, 0), (attention.o_proj, 1)]
        yield [(mlp.gate_proj, 0), (mlp.up_proj, 0), (mlp.down_proj, 1)]


def importance(form):
    model, ids = load(), rows("rows-10x128.jsonl")
    model.config.use_cache = False

    def job():
        model.zero_grad(set_to_none=True)
        if form == "element-mixed":
            for row in ids:
                model(row[None], labels=row[None]).loss.backward()
                for parameter in model.parameters():
                    square = parameter.grad.detach() * parameter.grad.detach() / len(ids)
                    parameter.acc_grad = parameter.acc_grad + square if hasattr(parameter, "acc_grad") else square
                model.zero_grad(set_to_none=True)
        model(ids, labels=ids).loss.backward()
        scores = []
        for group in members(model):
            for linear, axis in group:
                salience = linear.weight * linear.weight.grad
                if form == "vector":
                    scores.append(salience.sum(1 - axis).abs().detach())
                    continue
                if form == "element-mixed":
                    salience = salience - 0.5 * linear.weight * linear.weight.acc_grad * linear.weight
                scores.append(salience.abs().sum(1 - axis).detach())
        for parameter in model.parameters():
            if hasattr(parameter, "acc_grad"):
                del parameter.acc_grad
        return scores

    return timed(job)


def lora():
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(load(), LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"))
    model.config.use_cache = False
    model.train()
    ids = rows("rows-8x128.jsonl")
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def job():
        optimiser.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        optimiser.step()

    return timed(job)


jobs = {"block": lambda: block(int(arguments.model)), "forward": forward, "lora": lora}
print(f"{jobs.get(arguments.job, lambda: importance(arguments.job))():.4f}")
