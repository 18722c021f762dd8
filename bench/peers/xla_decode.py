#!/usr/bin/env python3
"""Decode by XLA (JAX) on one GPU or several, as a peer of bench/peers/run.py.

    python3 bench/peers/xla_decode.py --model FOLDER_WITH_CONFIG_JSON --dtype bf16

The model's shapes (Qwen3, Mistral, Llama) as plain jnp with random weights, layers unrolled, projections that read the same
input joined to one matrix. One step, the greedy token included, is one jitted function whose KV cache is donated, so that it
is updated in place. With --tp the weights and the cache are sharded by heads, columns and rows, and XLA's SPMD partitioner
does the rest; joined matrices hold each rank's parts one behind the other, so that none of them has to be moved. A run is a prompt of --prompt tokens and --n steps: "waiting", where the host reads each token before it
begins the next step, or "behind", where it reads it while the next step runs. f32 is true f32.
Prints one line of JSON.
"""
import argparse
import json
import os
import statistics
import sys
import time

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

try:
    import jax
    import jax.numpy as jnp
    import numpy as np
except ImportError as missing:
    print(json.dumps({"absent": str(missing)}))
    sys.exit(2)


class Shape:
    def __init__(self, config, tp):
        self.tp = tp
        self.layers, self.width, self.ffn = config["num_hidden_layers"], config["hidden_size"], config["intermediate_size"]
        self.heads, self.kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
        self.head = config.get("head_dim") or self.width // self.heads
        self.vocab, self.eps = config["vocab_size"], config["rms_norm_eps"]
        self.theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
        self.tied, self.qk_norm = config["tie_word_embeddings"], config["model_type"] == "qwen3"


def sharding(mesh, *axes):
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))


def random_weights(shape, dtype, mesh):
    key = jax.random.key(1)

    def normal(i, rows, cols):
        return jax.random.normal(jax.random.fold_in(key, i), (rows, cols), dtype) * jnp.asarray(cols**-0.5, dtype)

    split = {"rows": sharding(mesh, "tp", None), "cols": sharding(mesh, None, "tp")}
    made = {by: jax.jit(normal, static_argnums=(1, 2), out_shardings=where) for by, where in split.items()}

    def matrix(i, rows, cols, by="rows"):
        return made[by](i, rows, cols)

    joined = (shape.heads + 2 * shape.kv_heads) * shape.head
    weights = {"embed": matrix(0, shape.vocab, shape.width), "norm": jnp.ones(shape.width, dtype), "layers": []}
    if not shape.tied:
        weights["head"] = matrix(1, shape.vocab, shape.width)
    for i in range(shape.layers):
        first = 4 * i + 2
        weights["layers"].append({
            "qkv": matrix(first, joined, shape.width), "out": matrix(first + 1, shape.width, shape.heads * shape.head, "cols"),
            "gate_up": matrix(first + 2, 2 * shape.ffn, shape.width), "down": matrix(first + 3, shape.width, shape.ffn, "cols"),
            "norm_1": jnp.ones(shape.width, dtype), "norm_2": jnp.ones(shape.width, dtype),
            "norm_q": jnp.ones(shape.head, dtype), "norm_k": jnp.ones(shape.head, dtype)})
    return weights


def norm(x, weight, eps):
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt(jnp.mean(wide * wide, -1, keepdims=True) + eps)).astype(x.dtype) * weight


def linear(x, weight):
    return jnp.einsum("btk,nk->btn", x, weight)


def rope(x, positions, theta):
    """x [B, T, heads, d]."""
    half = x.shape[-1] // 2
    angle = positions[:, None].astype(jnp.float32) * theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    cos, sin = jnp.cos(angle)[:, None, :], jnp.sin(angle)[:, None, :]
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def attention(shape, layer, x, cache, past, positions):
    batch, n, _ = x.shape
    heads, kv_heads = shape.heads // shape.tp, shape.kv_heads // shape.tp
    joined = linear(x, layer["qkv"]).reshape(batch, n, shape.tp, -1)
    q, k, v = jnp.split(joined, [heads * shape.head, (heads + kv_heads) * shape.head], -1)
    q, k = q.reshape(batch, n, shape.heads, shape.head), k.reshape(batch, n, shape.kv_heads, shape.head)
    v = v.reshape(batch, n, shape.kv_heads, shape.head)
    if shape.qk_norm:
        q, k = norm(q, layer["norm_q"], shape.eps), norm(k, layer["norm_k"], shape.eps)
    q, k = rope(q, positions, shape.theta), rope(k, positions, shape.theta)
    keys = jax.lax.dynamic_update_slice(cache[0], k.transpose(0, 2, 1, 3), (0, 0, past, 0))
    values = jax.lax.dynamic_update_slice(cache[1], v.transpose(0, 2, 1, 3), (0, 0, past, 0))
    q = q.reshape(batch, n, shape.kv_heads, shape.heads // shape.kv_heads, shape.head)
    score = jnp.einsum("btkgd,bksd->bkgts", q, keys, preferred_element_type=jnp.float32) * shape.head**-0.5
    seen = jnp.arange(keys.shape[2])[None, :] <= positions[:, None]
    weight = jax.nn.softmax(jnp.where(seen, score, -jnp.inf), -1).astype(x.dtype)
    mixed = jnp.einsum("bkgts,bksd->btkgd", weight, values).reshape(batch, n, shape.heads * shape.head)
    return linear(mixed, layer["out"]), (keys, values)


def forward(shape, weights, ids, caches, past):
    """Greedy next tokens [B, 1] and the caches with ids' [B, T] keys and values at `past` and on."""
    positions = past + jnp.arange(ids.shape[1])
    h, after = weights["embed"][ids], []
    for layer, cache in zip(weights["layers"], caches):
        mixed, cache = attention(shape, layer, norm(h, layer["norm_1"], shape.eps), cache, past, positions)
        h = h + mixed
        joined = linear(norm(h, layer["norm_2"], shape.eps), layer["gate_up"])
        gate, up = jnp.split(joined.reshape(*joined.shape[:2], shape.tp, -1), 2, -1)
        h = h + linear((jax.nn.silu(gate) * up).reshape(*joined.shape[:2], shape.ffn), layer["down"])
        after.append(cache)
    logits = linear(norm(h[:, -1:], weights["norm"], shape.eps), weights["embed" if shape.tied else "head"])
    return jnp.argmax(logits, -1), after, past + ids.shape[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", required=True, help="folder with config.json")
    parser.add_argument("--dtype", choices=["bf16", "f16", "f32"], default="bf16")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=26, help="tokens")
    parser.add_argument("--n", type=int, default=256, help="decode steps")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tp", type=int, default=1, help="devices that share the model")
    args = parser.parse_args()
    if len(jax.devices()) < args.tp:
        print(json.dumps({"absent": f"JAX sees {len(jax.devices())} of {args.tp} devices"}))
        return 2
    jax.config.update("jax_default_matmul_precision", "highest")
    with open(os.path.join(args.model, "config.json"), encoding="utf-8") as file:
        shape = Shape(json.load(file), args.tp)
    dtype = {"bf16": jnp.bfloat16, "f16": jnp.float16, "f32": jnp.float32}[args.dtype]
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:args.tp]), ("tp",))
    by_heads = sharding(mesh, None, "tp")
    weights = jax.block_until_ready(random_weights(shape, dtype, mesh))
    length = (args.prompt + args.n + 8) // 8 * 8

    def step(weights, ids, caches, past):
        return forward(shape, weights, ids, caches, past)

    step = jax.jit(step, donate_argnums=(2, 3))
    prompt = jax.random.randint(jax.random.key(2), (args.batch, args.prompt), 0, shape.vocab)
    prefill_ms, waiting_ms, behind_ms, compile_s = [], [], [], 0.0
    for run in range(2 * args.runs + 1):  # the first compiles and is not counted, then both ways in turn
        empty = (args.batch, shape.kv_heads, length, shape.head)
        caches = jax.block_until_ready([tuple(jnp.zeros(empty, dtype, device=by_heads) for _ in "kv") for _ in range(shape.layers)])
        first = time.perf_counter()
        ids, caches, past = jax.block_until_ready(step(weights, prompt, caches, jnp.int32(0)))
        second = time.perf_counter()
        for _ in range(args.n if run > 0 else 4):
            before = ids
            ids, caches, past = step(weights, ids, caches, past)
            ids.copy_to_host_async()
            np.asarray(ids if run % 2 == 1 else before)
        np.asarray(ids)
        end = time.perf_counter()
        if run == 0:
            compile_s = end - first
        else:
            prefill_ms.append((second - first) * 1e3)
            (waiting_ms if run % 2 == 1 else behind_ms).append((end - second) * 1e3 / args.n)
    print(json.dumps({
        "peer": "XLA (JAX)", "versions": f"jax {jax.__version__}", "device": jax.devices()[0].device_kind, "dtype": args.dtype,
        "tp": args.tp, "batch": args.batch, "context": [args.prompt, args.prompt + args.n], "waiting_ms": waiting_ms,
        "behind_ms": behind_ms, "prefill_ms": statistics.median(prefill_ms), "compile_s": compile_s}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
