#!/usr/bin/env python3
"""A GGUF file of a model's shapes with random weights, in seconds: what llama-bench needs to be timed.

    python3 bench/peers/random_gguf.py FOLDER_WITH_CONFIG_JSON OUT.gguf [--type bf16|q8_0]

Qwen3 and Mistral (llama). Matrices repeat a block of random values, so that a file of 8 GB is written as fast as memory takes
it; norms are ones. There is no tokenizer inside.
"""
import argparse
import json
import os
import struct
import sys

try:
    import numpy as np
except ImportError as missing:
    sys.exit(f"random_gguf: not run: {missing}")

ALIGN = 32
F32, Q8_0, BF16 = 0, 8, 30
FILE_TYPE = {"bf16": 32, "q8_0": 7}


def text(s):
    return struct.pack("<Q", len(s)) + s.encode()


def pair(key, value):
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    if isinstance(value, float):
        return text(key) + struct.pack("<If", 6, value)
    return text(key) + struct.pack("<II", 4, value)


def metadata(config, arch, file_type):
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    theta = config.get("rope_theta") or config["rope_parameters"]["rope_theta"]
    own = {
        "block_count": config["num_hidden_layers"], "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"], "feed_forward_length": config["intermediate_size"], "vocab_size": config["vocab_size"],
        "attention.head_count": heads, "attention.head_count_kv": config["num_key_value_heads"], "attention.key_length": head,
        "attention.value_length": head, "rope.dimension_count": head, "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(theta)}
    general = {"general.architecture": arch, "general.name": "random", "general.file_type": FILE_TYPE[file_type], "tokenizer.ggml.model": "none"}
    return {**general, **{f"{arch}.{key}": value for key, value in own.items()}}


def tensors(config):
    """(name, shape as in numpy) of every tensor; one dimension is a norm."""
    width, ffn, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim") or width // heads
    yield "token_embd.weight", (vocab, width)
    yield "output_norm.weight", (width,)
    if not config["tie_word_embeddings"]:
        yield "output.weight", (vocab, width)
    for i in range(config["num_hidden_layers"]):
        inner = [("attn_norm", (width,)), ("attn_q", (heads * head, width)), ("attn_k", (kv_heads * head, width)),
                 ("attn_v", (kv_heads * head, width)), ("attn_output", (width, heads * head)), ("ffn_norm", (width,)),
                 ("ffn_gate", (ffn, width)), ("ffn_up", (ffn, width)), ("ffn_down", (width, ffn))]
        if config["model_type"] == "qwen3":
            inner += [("attn_q_norm", (head,)), ("attn_k_norm", (head,))]
        for name, shape in inner:
            yield f"blk.{i}.{name}.weight", shape


def random_block(file_type, n_bytes, draw):
    """Bytes of matrices whose values are of the size 1/64."""
    if file_type == "bf16":
        values = draw.standard_normal(n_bytes // 2, dtype=np.float32) / 64
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    blocks = np.zeros(n_bytes // 34, dtype=np.dtype([("scale", "<f2"), ("q", "i1", 32)]))
    blocks["scale"] = 1 / 64 / 48
    blocks["q"] = draw.integers(-127, 128, blocks["q"].shape, dtype=np.int8)
    return blocks.tobytes()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder")
    parser.add_argument("out")
    parser.add_argument("--type", choices=FILE_TYPE, default="bf16")
    args = parser.parse_args()
    with open(os.path.join(args.folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    pairs = metadata(config, "qwen3" if config["model_type"] == "qwen3" else "llama", args.type)
    block = random_block(args.type, 34 << 20, np.random.default_rng(1))
    listed, infos, offset = [], b"", 0
    for name, shape in tensors(config):
        n = int(np.prod(shape))
        kind, size = (F32, 4 * n) if len(shape) == 1 else (BF16, 2 * n) if args.type == "bf16" else (Q8_0, n // 32 * 34)
        infos += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, offset)
        listed.append((len(shape), size))
        offset += -(-size // ALIGN) * ALIGN
    head = b"GGUF" + struct.pack("<IQQ", 3, len(listed), len(pairs)) + b"".join(pair(k, v) for k, v in pairs.items()) + infos
    with open(args.out, "wb") as file:
        file.write(head + b"\0" * (-len(head) % ALIGN))
        for dimensions, size in listed:
            source = np.ones(size // 4, dtype=np.float32).tobytes() if dimensions == 1 else block
            for first in range(0, size, len(source)):
                file.write(memoryview(source)[:min(len(source), size - first)])
            file.write(b"\0" * (-size % ALIGN))
    print(f"{args.out}: {len(listed)} tensors, {offset / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
