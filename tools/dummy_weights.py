#!/usr/bin/env python3
"""Deterministic dummy weights: the exact copy of what lockstep makes with --load-format dummy (src/model/weights.c).

An element is a function of (seed, tensor name, row-major index in the full tensor) alone, so it is the same at any number
of ranks, on any device, in any order. All u64 arithmetic wraps:

    h = fnv1a64(name) ^ (seed * 0x9E3779B97F4A7C15)
    x = h + (index + 1) * 0x9E3779B97F4A7C15                      then splitmix64's finaliser:
    x ^= x >> 30; x *= 0xBF58476D1CE4E5B9; x ^= x >> 27; x *= 0x94D049BB133111EB; x ^= x >> 31
    v = 2 * (float(x >> 40) * 2^-24) - 1                          exact in f32, in [-1, 1)

    [rows, cols]              v * sqrt(3 / cols)                  variance 1 / cols; each operation rounded to f32
    [n], name ...norm.weight  1 + 0.1 * v                         two f32 roundings, no fma
    [n], any other (biases)   0.5 * v

and then rounded to nearest even to the checkpoint's dtype (f32, bf16 or f16).

Command line: writes a checkpoint that transformers loads, in memory bounded by one chunk whatever the model's size:

    python3 tools/dummy_weights.py CONFIG_FOLDER OUT_FOLDER [--seed N] [--dtype bfloat16] [--max-shard-size 4GB] [--device cuda]
"""
import argparse
import json
import math
import os
import re
import shutil

import numpy as np
import torch

GOLDEN_RATIO = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1
CHUNK = 1 << 20  # elements at a time: about 40 MB of temporaries
DEVICE_CHUNK = 1 << 26  # 2.5 GB of temporaries on a GPU
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SAFETENSORS_NAME = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def fnv1a64(data):
    """FNV-1a of bytes."""
    h = 0xCBF29CE484222325
    for byte in data:
        h = ((h ^ byte) * 0x100000001B3) & MASK
    return h


def values_at(name, shape, index, seed=0):
    """f32 numpy array: the elements of the tensor at the given row-major indices, before rounding to its dtype."""
    h = fnv1a64(name.encode()) ^ ((seed * GOLDEN_RATIO) & MASK)
    x = np.uint64(h) + (np.asarray(index, dtype=np.uint64) + np.uint64(1)) * np.uint64(GOLDEN_RATIO)
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= x >> np.uint64(31)
    v = np.float32(2) * ((x >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)) - np.float32(1)
    if len(shape) == 2:
        return v * np.sqrt(np.float32(3) / np.float32(shape[1]))
    if len(shape) != 1:
        raise ValueError(f"{name}: dummy weights are defined for 1-D and 2-D tensors, not for shape {list(shape)}")
    if name.endswith("norm.weight"):
        return np.float32(1) + np.float32(0.1) * v
    return np.float32(0.5) * v


def shifted_right(x, n):
    """Logical shift of u64 held in int64, whose own shift keeps the sign."""
    return (x >> n) & ((1 << (64 - n)) - 1)


def signed(x):
    """The int64 with the bits of a u64."""
    return x - (1 << 64) if x >> 63 else x


def values_on(device, name, shape, first, n, seed=0):
    """values_at() for n indices from `first`, computed by torch on a device: the same bits. int64 wraps as u64 does."""
    h = signed(fnv1a64(name.encode()) ^ ((seed * GOLDEN_RATIO) & MASK))
    x = torch.arange(first + 1, first + 1 + n, dtype=torch.int64, device=device) * signed(GOLDEN_RATIO) + h
    x = (x ^ shifted_right(x, 30)) * signed(0xBF58476D1CE4E5B9)
    x = (x ^ shifted_right(x, 27)) * signed(0x94D049BB133111EB)
    x = x ^ shifted_right(x, 31)
    v = 2 * (shifted_right(x, 40).to(torch.float32) * 2.0**-24) - 1
    if len(shape) == 2:
        return v * float(np.sqrt(np.float32(3) / np.float32(shape[1])))
    return 1 + v * 0.1 if name.endswith("norm.weight") else v * 0.5


def chunks(name, shape, dtype=torch.float32, seed=0, device="cpu"):
    """Yields (first index, 1-D torch tensor in dtype, on the CPU) from the start of the tensor to its end."""
    n, most = math.prod(shape), CHUNK if device == "cpu" else DEVICE_CHUNK
    for first in range(0, n, most):
        count = min(most, n - first)
        if device == "cpu":
            made = torch.from_numpy(values_at(name, shape, np.arange(first, first + count, dtype=np.uint64), seed))
        else:
            made = values_on(device, name, shape, first, count, seed)
        yield first, made.to(dtype).cpu()


def tensor(name, shape, dtype=torch.float32, seed=0):
    """The whole tensor, as torch."""
    out = torch.empty(math.prod(shape), dtype=dtype)
    for first, part in chunks(name, shape, dtype, seed):
        out[first:first + len(part)] = part
    return out.view(*shape)


@torch.no_grad()
def fill(model, dtype=None, seed=0):
    """Overwrites a transformers model's parameters with dummy weights, rounded to dtype (default: each parameter's own)
    and stored in the parameter's dtype. A tied head follows the embedding: it is the same parameter. What lies on a GPU is
    made there, in seconds for any model that fits."""
    for name, parameter in model.named_parameters():
        shape, dtype_made = tuple(parameter.shape), dtype or parameter.dtype
        if parameter.device.type == "cpu":
            parameter.copy_(tensor(name, shape, dtype_made, seed))
            continue
        flat = parameter.view(-1)
        for first in range(0, len(flat), DEVICE_CHUNK):
            n = min(DEVICE_CHUNK, len(flat) - first)
            flat[first:first + n] = values_on(parameter.device, name, shape, first, n, seed).to(dtype_made)
    return model


def tensors_of(config_folder):
    """[(name, shape)] of the checkpoint, and the config. A tied head is not in a checkpoint."""
    from transformers import AutoConfig, AutoModelForCausalLM
    config = AutoConfig.from_pretrained(config_folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model.tie_weights()
    return [(name, tuple(p.shape)) for name, p in model.named_parameters()], config


def write_shard(path, tensors, dtype, seed, device):
    """One safetensors file, streamed."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in tensors:
        end = offset + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": SAFETENSORS_NAME[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name, shape in tensors:
            for _, part in chunks(name, shape, dtype, seed, device):
                f.write(part.view(torch.uint8).numpy().data)


def write_checkpoint(config_folder, out_folder, seed=0, dtype=None, max_shard_bytes=4 * 10**9, device="cpu"):
    """A Hugging Face checkpoint: config.json and other small files as they are in config_folder, plus the weights."""
    tensors, config = tensors_of(config_folder)
    dtype = dtype or config.dtype or torch.float32
    if dtype not in SAFETENSORS_NAME:
        raise ValueError(f"dtype {dtype} is not one of {', '.join(DTYPES)}")
    shards, used = [[]], 0
    for name, shape in tensors:
        n_bytes = math.prod(shape) * dtype.itemsize
        if shards[-1] and used + n_bytes > max_shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append((name, shape))
        used += n_bytes
    os.makedirs(out_folder, exist_ok=True)
    weight_map = {}
    for i, shard in enumerate(shards):
        name = "model.safetensors" if len(shards) == 1 else f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        write_shard(os.path.join(out_folder, name), shard, dtype, seed, device)
        weight_map.update((tensor_name, name) for tensor_name, _ in shard)
        print(f"{name}: {len(shard)} tensors")
    if len(shards) > 1:
        n = sum(math.prod(shape) for _, shape in tensors)
        index = {"metadata": {"total_parameters": n, "total_size": n * dtype.itemsize}, "weight_map": weight_map}
        with open(os.path.join(out_folder, "model.safetensors.index.json"), "w") as f:
            json.dump(index, f, indent=2, sort_keys=True)
    if os.path.realpath(config_folder) != os.path.realpath(out_folder):
        for name in sorted(os.listdir(config_folder)):
            if name.endswith((".json", ".jinja", ".model", ".txt")) and not name.endswith(".index.json"):
                shutil.copy(os.path.join(config_folder, name), out_folder)
    with open(os.path.join(out_folder, "config.json")) as f:
        written = json.load(f)
    key = "torch_dtype" if "torch_dtype" in written and "dtype" not in written else "dtype"
    if written.get(key) != str(dtype).removeprefix("torch."):
        written[key] = str(dtype).removeprefix("torch.")
        with open(os.path.join(out_folder, "config.json"), "w") as f:
            f.write(json.dumps(written, indent=2, sort_keys=True) + "\n")


def byte_size(text):
    """'4GB', '500MB', '100KB' (powers of ten, as transformers reads them) or a plain number of bytes."""
    match = re.fullmatch(r"(\d+)\s*(GB|MB|KB|)", text.strip().upper())
    if not match:
        raise argparse.ArgumentTypeError(f"not a size: {text!r}")
    return int(match[1]) * {"GB": 10**9, "MB": 10**6, "KB": 10**3, "": 1}[match[2]]


def main():
    parser = argparse.ArgumentParser(description="Write a Hugging Face checkpoint of lockstep's dummy weights.")
    parser.add_argument("config_folder", help="folder with config.json")
    parser.add_argument("out_folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=DTYPES, help="default: what config.json says, else float32")
    parser.add_argument("--max-shard-size", type=byte_size, default="4GB")
    parser.add_argument("--device", default="cpu", help="of torch, that makes them: cuda takes seconds (default: cpu)")
    args = parser.parse_args()
    write_checkpoint(args.config_folder, args.out_folder, args.seed & MASK, DTYPES.get(args.dtype), args.max_shard_size, args.device)


if __name__ == "__main__":
    main()
