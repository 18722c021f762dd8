#!/usr/bin/env python3
"""Decode by transformers and torch.compile on one GPU: what an hour with PyTorch gives, as a peer of bench/peers/run.py.

    python3 bench/peers/torch_decode.py --model FOLDER_WITH_CONFIG_JSON --dtype bf16

The model class of transformers with random weights and a static KV cache; one step, the greedy token included, is compiled with
mode="reduce-overhead" (CUDA graphs, no breaks), or with --eager run as it comes. A run is a prompt of --prompt tokens, run eagerly, and --n decode steps:
"waiting", where the host reads each token before it begins the next step, or "behind", where it reads it while the next step
runs. f32 is true f32. Prints one line of JSON.
"""
import argparse
import json
import os
import statistics
import sys
import time

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")


def decode_step(model, cache):
    def step(token):
        return model(token, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)

    return step


class Reader:
    """Brings tokens to the host behind the step that made them, without waiting for steps that were begun later."""

    def __init__(self, torch, token):
        on_gpu = token.is_cuda
        self.place = [torch.empty(token.shape, dtype=token.dtype, pin_memory=on_gpu) for _ in range(2)]
        self.arrived = [torch.cuda.Event() if on_gpu else None for _ in range(2)]

    def send(self, i, token):
        self.place[i % 2].copy_(token, non_blocking=True)
        if self.arrived[i % 2]:
            self.arrived[i % 2].record()

    def read(self, i):
        if i >= 0 and self.arrived[i % 2]:
            self.arrived[i % 2].synchronize()
        return self.place[i % 2].tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", required=True, help="folder with config.json")
    parser.add_argument("--dtype", choices=["bf16", "f16", "f32"], default="bf16")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=26, help="tokens")
    parser.add_argument("--n", type=int, default=256, help="decode steps")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    args = parser.parse_args()
    try:
        import torch
        import transformers
    except ImportError as missing:
        print(json.dumps({"absent": str(missing)}))
        return 2
    if args.device == "cuda" and not torch.cuda.is_available():
        print(json.dumps({"absent": "torch sees no GPU"}))
        return 2
    wait = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    torch.set_float32_matmul_precision("highest")
    torch.manual_seed(1)
    config = transformers.AutoConfig.from_pretrained(args.model)
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[args.dtype]
    with torch.device(args.device), torch.no_grad():
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
        prompt = torch.randint(0, config.vocab_size, (args.batch, args.prompt))
    cache = transformers.StaticCache(config=config, max_cache_len=(args.prompt + args.n + 8) // 8 * 8)
    eager = decode_step(model, cache)
    reader = Reader(torch, prompt[:, :1])
    compiled = eager if args.eager else torch.compile(eager, mode="reduce-overhead", fullgraph=True)
    prefill_ms, waiting_ms, behind_ms, compile_s = [], [], [], 0.0
    with torch.inference_mode():
        for run in range(2 * args.runs + 1):  # the first compiles and is not counted, then both ways in turn
            cache.reset()
            wait()
            start = time.perf_counter()
            token = eager(prompt)
            wait()
            prefill_ms.append((time.perf_counter() - start) * 1e3)
            start = time.perf_counter()
            for i in range(args.n if run > 0 else 4):
                token = compiled(token).clone()
                reader.send(i, token)
                reader.read(i if run % 2 == 1 else i - 1)
            wait()
            if run == 0:
                compile_s = 0.0 if args.eager else time.perf_counter() - start
            else:
                (waiting_ms if run % 2 == 1 else behind_ms).append((time.perf_counter() - start) * 1e3 / args.n)
    print(json.dumps({
        "peer": "transformers, eager" if args.eager else "transformers, torch.compile with CUDA graphs",
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "CPU",
        "dtype": args.dtype, "batch": args.batch, "context": [args.prompt, args.prompt + args.n],
        "waiting_ms": waiting_ms, "behind_ms": behind_ms, "prefill_ms": statistics.median(prefill_ms[1:]), "compile_s": compile_s}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
