#!/usr/bin/env python3
"""Decode and prefill on CPU cores beside llama.cpp (or ik_llama.cpp), run in turn, medians of --rounds runs.

    bench/peers/llama_bench_cpu.py --lockstep build/lockstep --model FOLDER --llama-bench PATH \\
        --pair none:model-bf16.gguf:"-fa 0":"-fa 1" --pair w8a8:model-q8_0.gguf:"-fa 0 -rtr 1":"-fa 1 -rtr 1"

A pair is our --quantization, the peer's file of the same weights, and what else the peer's llama-bench is given for decode
and for prefill: its best settings. Each round
runs both engines once for decode (--n tokens after a prompt of one token; the peer's tgN) and once for prefill (a prompt of
--p tokens; the peer's ppN), whole processes one after the other, so that a machine whose speed drifts treats them alike.
Peak memory bandwidth is what lockstep measures in its own runs.
"""
import argparse
import json
import os
import statistics
import subprocess
import tempfile


def run(command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr[-2000:]}")
    return done.stdout


def ours(args, quantization, prompt, n):
    command = [args.lockstep, "generate", "-m", args.model, "-t", str(args.threads), "-q", quantization, "--temp", "0", "--seed", "1",
               "--ignore-eos", "--json", "-n", str(n), "--max-model-len", "1024", "--max-num-seqs", "1", "-f", prompt]
    lines = run(command).strip().split("\n")
    return json.loads(lines[-1])["timeline"]


def theirs(args, gguf, extra, p, n):
    command = [args.llama_bench, "-m", gguf, "-t", str(args.threads), "-r", "1", "-o", "json", "-p", str(p), "-n", str(n), *extra.split()]
    return json.loads(run(command))[-1]["avg_ts"]


def spread(values):
    return f"{statistics.median(values):8.2f} ({min(values):.2f} to {max(values):.2f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--lockstep", default="build/lockstep")
    parser.add_argument("--model", required=True)
    parser.add_argument("--llama-bench", required=True)
    parser.add_argument("--pair", action="append", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--n", type=int, default=48)
    parser.add_argument("--p", type=int, default=512)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        short, long = os.path.join(folder, "short"), os.path.join(folder, "long")
        with open(short, "w", encoding="ascii") as file:
            file.write("a")
        with open(long, "w", encoding="ascii") as file:
            file.write(" a" * args.p)
        for pair in args.pair:
            quantization, gguf, for_decode, for_prefill = pair.split(":")
            rows = {"decode": ([], []), "prefill": ([], [])}
            ratios, tokens = [], 0
            for _ in range(args.rounds):
                line = ours(args, quantization, short, args.n)
                rows["decode"][0].append(line["decode_tokens"] / line["decode_us"] * 1e6)
                ratios.append(line["limit_ratio"] * 100)
                rows["decode"][1].append(theirs(args, gguf, for_decode, 0, args.n))
                line = ours(args, quantization, long, 1)
                tokens = line["prefill_tokens"]
                rows["prefill"][0].append(tokens / line["prefill_us"] * 1e6)
                rows["prefill"][1].append(theirs(args, gguf, for_prefill, args.p, 0))
            print(f"{quantization} beside {os.path.basename(gguf)} ({for_decode}; {for_prefill}), tokens/s, median (min to max) of {args.rounds}")
            for name, (we, they) in rows.items():
                ratio = statistics.median(we) / statistics.median(they)
                what = f"{name} {args.n if name == 'decode' else tokens}"
                print(f"  {what:12} lockstep {spread(we)}   peer {spread(they)}   ratio {ratio:.2f}")
            print(f"  share of the read bandwidth measured in the run, %: {spread(ratios)}", flush=True)


if __name__ == "__main__":
    main()
