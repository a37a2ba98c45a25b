"""Expected logits of tiny Qwen2 and GPT-NeoX models whose weights are given by a formula.

    python3 scripts/family_golden.py > tests/golden/data/families.json
    python3 scripts/family_golden.py FOLDER      compares with a checkpoint's expected.json

An implementation in float64 that is independent of the Rust code. The test `families::logits_equal_the_golden_ones` builds the
same checkpoints and compares the logits. Uses only the standard library.
"""

import json
import math
import struct
import sys

QWEN2 = {
    "model_type": "qwen2", "hidden_size": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 6,
    "num_hidden_layers": 2, "vocab_size": 7, "max_position_embeddings": 32, "rms_norm_eps": 1e-6, "rope_theta": 1000.0,
    "tie_word_embeddings": True, "use_sliding_window": False, "hidden_act": "silu",
}
GPT_NEOX = {
    "model_type": "gpt_neox", "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 6, "num_hidden_layers": 2,
    "vocab_size": 7, "max_position_embeddings": 32, "layer_norm_eps": 1e-5, "rotary_emb_base": 100, "rotary_pct": 0.5,
    "tie_word_embeddings": False, "hidden_act": "gelu", "use_parallel_residual": True, "attention_bias": True,
}
IDS = [3, 1, 4, 1, 5, 2, 6]


def tensor_shapes(config):
    """The stored tensors with their shapes, in the order of their index in the formula."""
    d, f, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    if config["model_type"] == "qwen2":
        kv = config["num_key_value_heads"] * (d // config["num_attention_heads"])
        shapes = {"model.embed_tokens.weight": [v, d], "model.norm.weight": [d]}
        for layer in range(config["num_hidden_layers"]):
            p = f"model.layers.{layer}."
            shapes |= {
                p + "input_layernorm.weight": [d], p + "self_attn.q_proj.weight": [d, d], p + "self_attn.q_proj.bias": [d],
                p + "self_attn.k_proj.weight": [kv, d], p + "self_attn.k_proj.bias": [kv], p + "self_attn.v_proj.weight": [kv, d],
                p + "self_attn.v_proj.bias": [kv], p + "self_attn.o_proj.weight": [d, d], p + "post_attention_layernorm.weight": [d],
                p + "mlp.gate_proj.weight": [f, d], p + "mlp.up_proj.weight": [f, d], p + "mlp.down_proj.weight": [d, f],
            }
        return shapes
    shapes = {
        "gpt_neox.embed_in.weight": [v, d], "gpt_neox.final_layer_norm.weight": [d], "gpt_neox.final_layer_norm.bias": [d],
        "embed_out.weight": [v, d],
    }
    for layer in range(config["num_hidden_layers"]):
        p = f"gpt_neox.layers.{layer}."
        shapes |= {
            p + "input_layernorm.weight": [d], p + "input_layernorm.bias": [d],
            p + "attention.query_key_value.weight": [3 * d, d], p + "attention.query_key_value.bias": [3 * d],
            p + "attention.dense.weight": [d, d], p + "attention.dense.bias": [d],
            p + "post_attention_layernorm.weight": [d], p + "post_attention_layernorm.bias": [d],
            p + "mlp.dense_h_to_4h.weight": [f, d], p + "mlp.dense_h_to_4h.bias": [f],
            p + "mlp.dense_4h_to_h.weight": [d, f], p + "mlp.dense_4h_to_h.bias": [d],
        }
    return shapes


def f32(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def formula(config):
    """Element i of tensor t is w = 0.4 sin(1.7 i + 2.3 t), or 1 + w / 4 for the weight of a norm."""
    tensors = {}
    for t, (name, shape) in enumerate(tensor_shapes(config).items()):
        is_norm = "norm" in name and name.endswith(".weight")
        wave = [0.4 * math.sin(1.7 * i + 2.3 * t) for i in range(math.prod(shape))]
        tensors[name] = (shape, [f32(1.0 + 0.25 * w) if is_norm else f32(w) for w in wave])
    return tensors


def read_safetensors(path):
    data = open(path, "rb").read()
    (size,) = struct.unpack("<Q", data[:8])
    tensors = {}
    for name, info in json.loads(data[8:8 + size]).items():
        if name != "__metadata__":
            begin, end = (8 + size + offset for offset in info["data_offsets"])
            tensors[name] = (info["shape"], list(struct.unpack(f"<{(end - begin) // 4}f", data[begin:end])))
    return tensors


def matrix(tensors, name):
    (rows, cols), values = tensors[name]
    return [values[r * cols:(r + 1) * cols] for r in range(rows)]


def linear(x, rows, bias=None):
    return [sum(a * b for a, b in zip(row, x)) + (bias[r] if bias else 0.0) for r, row in enumerate(rows)]


def rms_norm(x, weight, epsilon):
    scale = 1.0 / math.sqrt(sum(v * v for v in x) / len(x) + epsilon)
    return [v * scale * w for v, w in zip(x, weight)]


def layer_norm(x, weight, bias, epsilon):
    mean = sum(x) / len(x)
    scale = 1.0 / math.sqrt(sum((v - mean) ** 2 for v in x) / len(x) + epsilon)
    return [(v - mean) * scale * w + b for v, w, b in zip(x, weight, bias)]


def rotate(head, position, base, rotated):
    """Rotary positions in halves: of the first `rotated` dimensions, i is paired with i + rotated / 2."""
    out, half = list(head), rotated // 2
    for i in range(half):
        angle = position * base ** (-2.0 * i / rotated)
        a, b = head[i], head[i + half]
        out[i], out[i + half] = a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)
    return out


def attention(queries, keys, values, dim):
    """queries[t][head], keys[t][head], values[t][head] → for each position the concatenated outputs of the heads."""
    group = len(queries[0]) // len(keys[0])
    outputs = []
    for t, heads in enumerate(queries):
        row = []
        for h, q in enumerate(heads):
            scores = [sum(a * b for a, b in zip(q, keys[s][h // group])) / math.sqrt(dim) for s in range(t + 1)]
            top = max(scores)
            shares = [math.exp(score - top) for score in scores]
            total = sum(shares)
            row += [sum(shares[s] * values[s][h // group][c] for s in range(t + 1)) / total for c in range(dim)]
        outputs.append(row)
    return outputs


def heads_of(row, dim):
    return [row[i:i + dim] for i in range(0, len(row), dim)]


def add(a, b):
    return [x + y for x, y in zip(a, b)]


def logits_qwen2(config, tensors, ids):
    dim, eps = config["hidden_size"] // config["num_attention_heads"], config["rms_norm_eps"]
    base = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    vector = lambda name: tensors[name][1]
    embedding = matrix(tensors, "model.embed_tokens.weight")
    states = [embedding[i] for i in ids]
    for layer in range(config["num_hidden_layers"]):
        p = f"model.layers.{layer}."
        project = lambda x, m: linear(x, matrix(tensors, p + m + ".weight"), tensors.get(p + m + ".bias", (0, None))[1])
        normed = [rms_norm(x, vector(p + "input_layernorm.weight"), eps) for x in states]
        turn = lambda m: [[rotate(h, t, base, dim) for h in heads_of(project(x, m), dim)] for t, x in enumerate(normed)]
        values = [heads_of(project(x, "self_attn.v_proj"), dim) for x in normed]
        attended = attention(turn("self_attn.q_proj"), turn("self_attn.k_proj"), values, dim)
        states = [add(x, project(a, "self_attn.o_proj")) for x, a in zip(states, attended)]
        for t, x in enumerate(states):
            n = rms_norm(x, vector(p + "post_attention_layernorm.weight"), eps)
            gate = [g / (1.0 + math.exp(-g)) for g in project(n, "mlp.gate_proj")]
            product = [g * u for g, u in zip(gate, project(n, "mlp.up_proj"))]
            states[t] = add(x, project(product, "mlp.down_proj"))
    head = embedding if config["tie_word_embeddings"] else matrix(tensors, "lm_head.weight")
    return [linear(rms_norm(x, vector("model.norm.weight"), eps), head) for x in states]


def logits_gpt_neox(config, tensors, ids):
    dim, eps = config["hidden_size"] // config["num_attention_heads"], config["layer_norm_eps"]
    rope = config.get("rope_parameters") or {}
    base = rope.get("rope_theta") or config["rotary_emb_base"]
    rotated = int(dim * (rope.get("partial_rotary_factor") or config["rotary_pct"]))
    vector = lambda name: tensors[name][1]
    norm = lambda x, name: layer_norm(x, vector(name + ".weight"), vector(name + ".bias"), eps)
    states = [matrix(tensors, "gpt_neox.embed_in.weight")[i] for i in ids]
    for layer in range(config["num_hidden_layers"]):
        p = f"gpt_neox.layers.{layer}."
        project = lambda x, m: linear(x, matrix(tensors, p + m + ".weight"), vector(p + m + ".bias"))
        queries, keys, values = [], [], []
        for t, x in enumerate(states):
            # the rows of the fused matrix are q, k, v of each head in turn
            fused = heads_of(project(norm(x, p + "input_layernorm"), "attention.query_key_value"), dim)
            queries.append([rotate(h, t, base, rotated) for h in fused[0::3]])
            keys.append([rotate(h, t, base, rotated) for h in fused[1::3]])
            values.append(fused[2::3])
        attended = attention(queries, keys, values, dim)
        for t, x in enumerate(states):
            up = project(norm(x, p + "post_attention_layernorm"), "mlp.dense_h_to_4h")
            active = [0.5 * u * (1.0 + math.erf(u / math.sqrt(2.0))) for u in up]
            mlp = project(active, "mlp.dense_4h_to_h")
            states[t] = add(add(x, project(attended[t], "attention.dense")), mlp)
    head = matrix(tensors, "embed_out.weight")
    return [linear(norm(x, "gpt_neox.final_layer_norm"), head) for x in states]


LOGITS = {"qwen2": logits_qwen2, "gpt_neox": logits_gpt_neox}

if len(sys.argv) > 1:
    folder = sys.argv[1]
    config = json.load(open(f"{folder}/config.json"))
    tensors = read_safetensors(f"{folder}/model.safetensors")
    for prompt in json.load(open(f"{folder}/expected.json"))["prompts"]:
        last = LOGITS[config["model_type"]](config, tensors, prompt["input_ids"])[-1]
        print(max(abs(a - b) for a, b in zip(last, prompt["last_logits"])))
else:
    cases = []
    for config in (QWEN2, GPT_NEOX):
        rows = LOGITS[config["model_type"]](config, formula(config), IDS)
        shapes = [{"name": name, "shape": shape} for name, shape in tensor_shapes(config).items()]
        cases.append({
            "config": config, "tensors": shapes, "ids": IDS, "logits": [[float(f"{v:.9g}") for v in row] for row in rows],
        })
    print(json.dumps({"cases": cases}))
