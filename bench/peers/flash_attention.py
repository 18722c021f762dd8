#!/usr/bin/env python3
"""FlashAttention-2 as PyTorch ships it, on the shapes that `prefill_bench attn` times lockstep's attention of prompts on.

    python3 bench/peers/flash_attention.py

Qwen3-4B's heads (32 of queries, 8 of keys and values, 128 wide) in bf16, causal, one sequence of each length:
torch.nn.functional.scaled_dot_product_attention held to its FLASH_ATTENTION back end, which is FlashAttention-2; keys and values
are given once for each of their heads, or, where that torch cannot, once for each query head ("repeated", more to read). The
package flash_attn too, where it is installed. The time is the least of five runs of some 10 ms each, FLOPs are 4 x pairs of positions
x width x query heads, a causal row counting its own pairs alone: both as in tests/cuda/prefill_bench.c. One line of JSON for each
length and program. Exit status 0; 2 without a GPU or torch.
"""
import argparse
import json
import sys


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--lengths", default="512,1024,2048,4096,8192,16384,32768")
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--kv-heads", type=int, default=8)
    parser.add_argument("--width", type=int, default=128)
    return parser.parse_args()


def time_ms(torch, call):
    """Of one call, the least of five runs of some 10 ms."""
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def run(times):
        start.record()
        for _ in range(times):
            call()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop) / times

    run(2)
    times = int(10 / run(1)) + 1
    return min(run(times) for _ in range(5))


def sdpa(torch, args, n):
    """A call on n positions, and whether keys and values had to be repeated."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    q = torch.randn(1, args.heads, n, args.width, dtype=torch.bfloat16, device="cuda")
    k, v = (torch.randn(1, args.kv_heads, n, args.width, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    attention = torch.nn.functional.scaled_dot_product_attention

    def grouped():
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return attention(q, k, v, is_causal=True, enable_gqa=True)

    try:
        grouped()
        return grouped, False
    except (RuntimeError, TypeError):
        k, v = (x.repeat_interleave(args.heads // args.kv_heads, dim=1) for x in (k, v))

    def repeated():
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return attention(q, k, v, is_causal=True)

    return repeated, True


def package(torch, args, n):
    from flash_attn import flash_attn_func
    q = torch.randn(1, n, args.heads, args.width, dtype=torch.bfloat16, device="cuda")
    k, v = (torch.randn(1, n, args.kv_heads, args.width, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return lambda: flash_attn_func(q, k, v, causal=True), False


def main():
    args = arguments()
    try:
        import torch
    except ImportError as missing:
        print(json.dumps({"absent": str(missing)}))
        return 2
    if not torch.cuda.is_available():
        print(json.dumps({"absent": "torch sees no GPU"}))
        return 2
    peers = [("torch sdpa, FLASH_ATTENTION", f"torch {torch.__version__}", sdpa)]
    try:
        import flash_attn
        peers.append(("flash_attn", f"flash_attn {flash_attn.__version__}", package))
    except ImportError:
        print(json.dumps({"peer": "flash_attn", "absent": "not installed"}))
    for name, version, prepare in peers:
        for n in map(int, args.lengths.split(",")):
            line = {"peer": name, "version": version, "device": torch.cuda.get_device_name(), "tokens": n, "heads": args.heads,
                    "kv_heads": args.kv_heads, "width": args.width}
            try:
                call, repeated = prepare(torch, args, n)
                ms = time_ms(torch, call)
                flop = 4 * (n * (n + 1) / 2) * args.width * args.heads
                line.update(ms=round(ms, 4), tflop_per_s=round(flop / ms / 1e9, 1), repeated=repeated)
            except (RuntimeError, TypeError, ImportError) as why:
                line["absent"] = str(why)[:200]
            print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
