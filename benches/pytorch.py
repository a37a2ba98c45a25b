"""The PyTorch side of the measurements: the same jobs in PyTorch, transformers and PEFT, as LLM-Pruner computes them.

    python benches/pytorch.py JOB MODEL [--layers FROM TO] [--times BEFORE TIMED] [--threads 2]
        [--device cuda:0] [--precision f16] [--rows 8] [--length 512] [--products]

Prints the median seconds of one job. Loading is not timed. Importance follows LLM-Pruner's steps: every parameter gets a
gradient; second-order forms first process the samples one by one and add the squares of each sample's gradients to a buffer
beside every parameter; then follow the whole batch, and the scores of every member of every group from the gradients.

In f32 a GPU multiplies in float32 too: TF32 is off. In f16 the whole model is converted by `model.half()`; importance does not
scale the loss, as in LLM-Pruner. LoRA's adapters stay in float32 beside the frozen float16 weights, under `torch.autocast` and
with a `GradScaler`, as with `fp16=True` of transformers' `Trainer`. An update whose gradients overflow is skipped and the scale
halved, so run the job a few times before it is timed.

`--products` times only the products of the job's activations with the model's matrices: x·Wᵀ, and δ·W and δᵀ·x where PyTorch
computes them. LoRA's own products of rank 8 and those inside attention are not included."""

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
parser.add_argument("--device", default="cpu", help="cpu or cuda:0")
parser.add_argument("--precision", choices=["f32", "f16"], default="f32", help="the type of the model's weights")
parser.add_argument("--length", type=int, help="rows of so many random tokens, instead of those beside the model")
parser.add_argument("--rows", type=int, help="default: as many as the file beside the model has, with a length 8")
parser.add_argument("--products", action="store_true", help="only the job's products of matrices")
arguments = parser.parse_args()
os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402  (the threads must be set before the import)

torch.set_num_threads(arguments.threads)
torch.set_float32_matmul_precision("highest")  # no TF32
device = torch.device(arguments.device)
half = arguments.precision == "f16"
dtype = torch.float16 if half else torch.float32


def wait():
    """Waits for the GPU, whose calls return before the work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(job):
    for _ in range(arguments.times[0]):
        job()
    seconds = []
    for _ in range(max(1, arguments.times[1])):
        wait()
        began = time.perf_counter()
        job()
        wait()
        seconds.append(time.perf_counter() - began)
    return sorted(seconds)[len(seconds) // 2]


def block(width):
    """A LLaMA block of transformers on 8 sequences of 128: forward and backward, with the gradients of the weights."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    head_dim = 48 if width == 288 else 64
    mlp = -(-(width * 8 // 3) // 64) * 64
    heads = width // head_dim
    config = LlamaConfig(hidden_size=width, intermediate_size=mlp, num_attention_heads=heads, num_key_value_heads=heads)
    config._attn_implementation = "sdpa"
    layer, rotary = LlamaDecoderLayer(config, 0).to(device, dtype), LlamaRotaryEmbedding(config).to(device)
    if arguments.products:
        return products([(linear, 8 * 128, True, True) for linear in linears(layer)])
    x = torch.randn(8, 128, width, device=device, dtype=dtype, requires_grad=True)
    positions = torch.arange(128, device=device)[None]
    upstream = torch.ones(8, 128, width, device=device, dtype=dtype)

    def job():
        layer.zero_grad(set_to_none=True)
        x.grad = None
        y = layer(x, position_embeddings=rotary(x, positions), attention_mask=None)
        (y[0] if isinstance(y, tuple) else y).backward(upstream)

    return timed(job)


def load():
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype)
    return (model.half() if half else model).to(device)


def rows(name):
    """Rows of token ids: those in the file beside the model, or random ones from a fixed seed."""
    if arguments.length:
        with open(os.path.join(arguments.model, "config.json")) as file:
            vocabulary = json.load(file)["vocab_size"]
        size = (arguments.rows or 8, arguments.length)
        return torch.randint(vocabulary, size, generator=torch.Generator().manual_seed(3)).to(device)
    with open(os.path.join(arguments.model, name)) as file:
        ids = [json.loads(line)["ids"] for line in file]
    return torch.tensor([ids[row % len(ids)] for row in range(arguments.rows or len(ids))], device=device)


def linears(module):
    return [linear for linear in module.modules() if isinstance(linear, torch.nn.Linear)]


def products(parts):
    """Times x·Wᵀ of every (linear, tokens, whether also δ·W, whether also δᵀ·x). Activations of one shape share a tensor."""
    activations = {
        (tokens, width): torch.randn(tokens, width, device=device, dtype=dtype)
        for linear, tokens, _, _ in parts
        for width in linear.weight.shape
    }

    def job():
        with torch.no_grad():
            for linear, tokens, to_input, to_weight in parts:
                rows, columns = linear.weight.shape
                x, upstream = activations[tokens, columns], activations[tokens, rows]
                torch.nn.functional.linear(x, linear.weight)
                if to_input:
                    upstream @ linear.weight
                if to_weight:
                    upstream.T @ x

    return timed(job)


def forward():
    model, ids = load(), rows("rows-8x128.jsonl")
    if arguments.products:
        return products([(linear, ids.numel(), False, False) for linear in linears(model)])

    def job():
        with torch.no_grad():
            model(ids, use_cache=False).logits

    return timed(job)


def members(model):
    """The members of every group: (layer, axis of its channels)."""
    for layer in range(*arguments.layers):
        attention, mlp = model.model.layers[layer].self_attn, model.model.layers[layer].mlp
        yield [(attention.q_proj, 0), (attention.k_proj, 0), (attention.v_proj, 0), (attention.o_proj, 1)]
        yield [(mlp.gate_proj, 0), (mlp.up_proj, 0), (mlp.down_proj, 1)]


def importance(form):
    model, ids = load(), rows("rows-10x128.jsonl")
    if arguments.products:
        passes = [*([ids.shape[1]] * len(ids) if form == "element-mixed" else []), ids.numel()]
        return products([(linear, tokens, True, True) for tokens in passes for linear in linears(model)])
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

    model, ids = load(), rows("rows-8x128.jsonl")
    if arguments.products:
        first = model.model.layers[0].self_attn  # no gradient is needed below the first adapters
        lowest = (first.q_proj, first.k_proj, first.v_proj)
        return products([(linear, ids.numel(), linear not in lowest, False) for linear in linears(model)])
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM"))
    model.config.use_cache = False
    model.train()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    scaler = torch.amp.GradScaler(device.type, enabled=half)

    def job():
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.float16, enabled=half):
            loss = model(input_ids=ids, labels=ids).loss
        scaler.scale(loss).backward()
        scaler.unscale_(optimiser)
        torch.nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], 1.0)
        scaler.step(optimiser)
        scaler.update()

    return timed(job)


jobs = {"block": lambda: block(int(arguments.model)), "forward": forward, "lora": lora}
print(f"{jobs.get(arguments.job, lambda: importance(arguments.job))():.5f}")
