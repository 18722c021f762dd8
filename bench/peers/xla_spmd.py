#!/usr/bin/env python3
"""Decode by XLA's SPMD partitioner (JAX) on several GPUs: what `lockstep generate -tp N` replaces.

    python3 bench/peers/xla_spmd.py --model FOLDER_WITH_CONFIG_JSON --tp 2

The model of xla_decode.py with Megatron's split: heads and FFN columns over the devices, then rows, whose sums XLA adds by an
all-reduce (NCCL); embedding and head by vocabulary; KV heads with their rank. Weights are made where they stay, by one function
a shape. One decode step with its greedy token is one jitted function, layers unrolled, its caches donated; it is compiled once,
and begins behind --context positions whose keys and values are zeros. The host reads each token while the next step runs.
--prefill N times prompts of N tokens too, which is a second function to compile.
Prints a line of JSON for each thing done, so that one that is cut off has told what it got to. --tp 1: the same on one device.
"""
import argparse
import json
import os
import statistics
import sys
import time

os.environ.setdefault("NCCL_NVLS_ENABLE", "0")

from xla_decode import Shape, jax, jnp, linear, norm, np, rope  # noqa: E402
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P  # noqa: E402

COLUMN, ROW, WHOLE, KV = P("tp", None), P(None, "tp"), P(None), P(None, "tp", None, None)


def random_weights(shape, dtype, mesh):
    makers = {}

    def matrix(i, rows, cols, spec):
        def make(i):
            key = jax.random.fold_in(jax.random.key(1), i)
            return jax.random.normal(key, (rows, cols), dtype) * jnp.asarray(cols**-0.5, dtype)

        if (rows, cols, spec) not in makers:
            makers[rows, cols, spec] = jax.jit(make, out_shardings=NamedSharding(mesh, spec))
        return makers[rows, cols, spec](i)

    def ones(n):
        return jax.device_put(np.ones(n, dtype), NamedSharding(mesh, WHOLE))

    q, kv = shape.heads * shape.head, shape.kv_heads * shape.head
    vocab = -(-shape.vocab // 64) * 64  # in equal parts
    weights = {"embed": matrix(0, vocab, shape.width, COLUMN), "norm": ones(shape.width), "layers": []}
    if not shape.tied:
        weights["head"] = matrix(1, vocab, shape.width, COLUMN)
    for layer in range(shape.layers):
        i = 7 * layer + 2
        weights["layers"].append({
            "q": matrix(i, q, shape.width, COLUMN), "k": matrix(i + 1, kv, shape.width, COLUMN),
            "v": matrix(i + 2, kv, shape.width, COLUMN), "out": matrix(i + 3, shape.width, q, ROW),
            "gate": matrix(i + 4, shape.ffn, shape.width, COLUMN), "up": matrix(i + 5, shape.ffn, shape.width, COLUMN),
            "down": matrix(i + 6, shape.width, shape.ffn, ROW), "norm_1": ones(shape.width), "norm_2": ones(shape.width),
            "norm_q": ones(shape.head), "norm_k": ones(shape.head)})
    return weights


def attention(shape, layer, x, cache, past, positions):
    batch, n, _ = x.shape
    q = linear(x, layer["q"]).reshape(batch, n, shape.heads, shape.head)
    k = linear(x, layer["k"]).reshape(batch, n, shape.kv_heads, shape.head)
    v = linear(x, layer["v"]).reshape(batch, n, shape.kv_heads, shape.head)
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


def forward(shape, whole, weights, ids, caches, past):
    """Greedy next tokens [B, 1] and the caches with ids' [B, T] keys and values at `past` and on."""
    positions = past + jnp.arange(ids.shape[1])
    h, after = jax.lax.with_sharding_constraint(weights["embed"][ids], whole), []
    for layer, cache in zip(weights["layers"], caches):
        mixed, cache = attention(shape, layer, norm(h, layer["norm_1"], shape.eps), cache, past, positions)
        h = jax.lax.with_sharding_constraint(h + mixed, whole)
        x = norm(h, layer["norm_2"], shape.eps)
        x = linear(jax.nn.silu(linear(x, layer["gate"])) * linear(x, layer["up"]), layer["down"])
        h = jax.lax.with_sharding_constraint(h + x, whole)
        after.append(cache)
    logits = linear(norm(h[:, -1:], weights["norm"], shape.eps), weights["embed" if shape.tied else "head"])
    return jnp.argmax(logits, -1), after, past + ids.shape[1]


def tell(began, **what):
    print(json.dumps({"s": round(time.perf_counter() - began, 2), **what}), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", required=True, help="folder with config.json")
    parser.add_argument("--tp", type=int, default=2, help="devices")
    parser.add_argument("--dtype", choices=["bf16", "f16", "f32"], default="bf16")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--context", type=int, default=26, help="positions before the first step")
    parser.add_argument("--n", type=int, default=64, help="decode steps of a run")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--prefill", type=int, default=0, help="tokens")
    args = parser.parse_args()
    began = time.perf_counter()
    if len(jax.devices()) < args.tp:
        tell(began, absent=f"{len(jax.devices())} devices")
        return 2
    jax.config.update("jax_default_matmul_precision", "highest")
    with open(os.path.join(args.model, "config.json"), encoding="utf-8") as file:
        shape = Shape(json.load(file))
    dtype = {"bf16": jnp.bfloat16, "f16": jnp.float16, "f32": jnp.float32}[args.dtype]
    mesh = Mesh(np.array(jax.devices()[: args.tp]), ("tp",))
    whole, of_kv = NamedSharding(mesh, P()), NamedSharding(mesh, KV)
    about = {"peer": "XLA SPMD (JAX)", "versions": f"jax {jax.__version__}", "device": jax.devices()[0].device_kind,
             "tp": args.tp, "dtype": args.dtype, "batch": args.batch, "context": [args.context, args.context + args.n]}
    tell(began, **about, did="found devices")
    weights = jax.block_until_ready(random_weights(shape, dtype, mesh))
    tell(began, did="made weights")
    length = (max(args.context + args.n, args.prefill) + 8) // 8 * 8
    empty = (args.batch, shape.kv_heads, length, shape.head)
    new_cache = jax.jit(lambda: jnp.zeros(empty, dtype), out_shardings=of_kv)
    cache_shardings = [(of_kv, of_kv)] * shape.layers

    def step(weights, ids, caches, past):
        return forward(shape, whole, weights, ids, caches, past)

    step = jax.jit(step, donate_argnums=(2,), out_shardings=(whole, cache_shardings, whole))

    def fresh():
        return jax.block_until_ready([(new_cache(), new_cache()) for _ in range(shape.layers)])

    def tokens(n):
        return jax.device_put(np.full((args.batch, n), 17, np.int32), whole)

    def position(n):
        return jax.device_put(np.int32(n), whole)

    decode_ms, prefill_ms = [], []
    for run in range(args.runs + 1):  # the first compiles and is not counted
        ids, caches, past = tokens(1), fresh(), position(args.context)
        first = time.perf_counter()
        for _ in range(args.n if run > 0 else 4):
            before = ids
            ids, caches, past = step(weights, ids, caches, past)
            np.asarray(before)
        np.asarray(ids)
        end = time.perf_counter()
        if run == 0:
            tell(began, did="compiled a decode step", compile_s=end - first)
        else:
            decode_ms.append((end - first) * 1e3 / args.n)
            tell(began, decode_ms=decode_ms[-1])
    tell(began, **about, decode_ms=decode_ms, median_ms=statistics.median(decode_ms))
    for run in range(args.runs + 1 if args.prefill > 0 else 0):
        ids, caches, past = tokens(args.prefill), fresh(), position(0)
        first = time.perf_counter()
        jax.block_until_ready(step(weights, ids, caches, past))
        end = time.perf_counter()
        if run == 0:
            tell(began, did="compiled a prompt", compile_s=end - first)
        else:
            prefill_ms.append((end - first) * 1e3)
            tell(began, prefill_tokens=args.prefill, prefill_ms=prefill_ms[-1])
    if args.prefill > 0:
        tell(began, **about, prefill_tokens=args.prefill, median_ms=statistics.median(prefill_ms))
    return 0


if __name__ == "__main__":
    sys.exit(main())
