#!/usr/bin/env python3
"""lockstep beside its peers on one GPU, in one call: batch 1, a prompt of 26 tokens and 256 more, the same shapes, random weights.

    python3 bench/peers/one_gpu.py --model FOLDER_WITH_CONFIG_JSON [--llama-bench PATH] [--modes bf16,f32,w8a16] [--json FILE]

xla and torch are xla_decode.py and torch_decode.py beside this file, llama is llama-bench of llama.cpp with all layers on the
GPU, on a GGUF that random_gguf.py writes into --scratch (w8a16 stands beside its q8_0). lockstep runs before, between and after
the peers, as a process each time; a peer's process measures --runs times. "waiting": the host reads each token before it begins
the next step, as a plain loop does and llama-bench (its logits); "behind": it reads it while the next step runs, the best that
still shows text as it comes. Ratios are a peer's median over lockstep's. A peer that is not there, or has no such type, is listed.
"""
import argparse
import datetime
import json
import os
import statistics
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(HERE))

import runs

PROMPT, NEW = 26, 256
MODES = {"bf16": ["--dtype", "bf16"], "f32": ["--dtype", "f32"], "w8a16": ["--dtype", "bf16", "-q", "w8a16"]}
GGUF = {"bf16": "bf16", "w8a16": "q8_0"}
MUST = {"xla": 1.3, "torch": 1.3, "llama": 1.4}


def ours(args, mode):
    run = runs.generate(args.lockstep, args.model, ["--load-format", "dummy", "--device", "cuda", *runs.ROOM, "-p", runs.PROMPT,
                                                    "-n", str(NEW), *MODES[mode]])
    return run["decode_us"] / run["decode_steps"] / 1e3, run["limit_ratio"] * 100


def python_peer(args, mode, name):
    """What xla_decode.py or torch_decode.py prints."""
    if mode not in ("bf16", "f32"):
        return {"absent": f"it has no {mode}"}
    command = [sys.executable, os.path.join(HERE, name), "--model", args.model, "--dtype", mode, "--prompt", str(PROMPT), "--n", str(NEW),
               "--runs", str(args.runs)]
    try:
        return json.loads(runs.child(command, args.timeout).strip().split("\n")[-1])
    except runs.Failed as why:
        return {"absent": str(why)}


def llama(args, mode):
    if mode not in GGUF:
        return {"absent": f"no GGUF of {mode}"}
    if not args.llama_bench or not os.path.exists(args.llama_bench):
        return {"absent": f"no llama-bench {args.llama_bench or '(--llama-bench)'}"}
    file = os.path.join(args.scratch, f"random-{GGUF[mode]}.gguf")
    try:
        runs.child([sys.executable, os.path.join(HERE, "random_gguf.py"), args.model, file, "--type", GGUF[mode]])
        said = runs.child([args.llama_bench, "-m", file, "-ngl", "99", "-fa", "1", "-p", "0", "-n", str(NEW), "-d", str(PROMPT), "-r", str(args.runs),
                           "-o", "json"], args.timeout)
        line = json.loads(said)[-1]
        return {"versions": f"llama.cpp {line['build_commit']}", "waiting_ms": [ns / NEW / 1e6 for ns in line["samples_ns"]], "behind_ms": []}
    except (runs.Failed, ValueError, KeyError, IndexError) as why:
        return {"absent": str(why)}
    finally:
        if os.path.exists(file):
            os.unlink(file)


PEERS = {"xla": lambda args, mode: python_peer(args, mode, "xla_decode.py"),
         "torch": lambda args, mode: python_peer(args, mode, "torch_decode.py"), "llama": llama}


def measure(args, mode):
    """lockstep's runs and the peers', in turn."""
    found = {"lockstep_ms": [], "limit_percent": [], "peers": {}}

    def once():
        ms, limit = ours(args, mode)
        found["lockstep_ms"].append(ms)
        found["limit_percent"].append(limit)

    once()
    for name in args.peers.split(","):
        found["peers"][name] = PEERS[name](args, mode)
        print(f"{mode} {name}: {json.dumps(found['peers'][name])[:200]}", file=sys.stderr, flush=True)
        once()
    while len(found["lockstep_ms"]) < args.runs:
        once()
    return found


def table(results):
    lines = ["| weights | engine | ms a token, waiting | behind | over lockstep | must | compile s | version |", "|---|---|---|---|---|---|---|---|"]
    for mode, found in results.items():
        if "failed" in found:
            lines.append(f"| {mode} | lockstep | failed: {found['failed'][:80]} | | | | | |")
            continue
        own = statistics.median(found["lockstep_ms"])
        lines.append(f"| {mode} | lockstep, {statistics.median(found['limit_percent']):.1f} % of the limit | {runs.spread(found['lockstep_ms'])}"
                     f" | - | 1 | | - | |")
        for name, peer in found["peers"].items():
            if "absent" in peer:
                lines.append(f"| {mode} | {name} | absent: {peer['absent'][-80:]} | | | | | |".replace("\n", " "))
                continue
            behind = runs.spread(peer["behind_ms"]) if peer["behind_ms"] else "-"
            ratios = f"{statistics.median(peer['waiting_ms']) / own:.2f}x"
            if peer["behind_ms"]:
                ratios += f", {statistics.median(peer['behind_ms']) / own:.2f}x"
            compile_s = f"{peer['compile_s']:.1f}" if "compile_s" in peer else "-"
            lines.append(f"| {mode} | {name} | {runs.spread(peer['waiting_ms'])} | {behind} | {ratios} | {MUST[name]}x"
                         f" | {compile_s} | {peer['versions']} |")
    return lines


def main():
    root = os.path.dirname(os.path.dirname(HERE))
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--lockstep", default=os.path.join(root, "build/gpu/lockstep"))
    parser.add_argument("--model", required=True, help="folder with config.json")
    parser.add_argument("--modes", default="bf16,f32,w8a16")
    parser.add_argument("--peers", default="xla,torch,llama")
    parser.add_argument("--llama-bench", help="built with CUDA")
    parser.add_argument("--scratch", default="/dev/shm", help="folder for GGUF files, of 8 GB each")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--timeout", type=float, default=300, help="seconds a peer's process may take")
    parser.add_argument("--commit", default="", help="of the build, for the record")
    parser.add_argument("--json", help="file for every run")
    args = parser.parse_args()
    unknown = set(args.modes.split(",")) - set(MODES) | set(args.peers.split(",")) - set(PEERS)
    if unknown:
        sys.exit(f"one_gpu: {', '.join(sorted(unknown))}: modes are {', '.join(MODES)}; peers are {', '.join(PEERS)}")
    results = {}
    for mode in args.modes.split(","):
        try:
            results[mode] = measure(args, mode)
        except runs.Failed as why:
            results[mode] = {"failed": str(why)}
    print(f"{datetime.date.today()}, context {PROMPT + 1} to {PROMPT + NEW}, batch 1, medians (and extremes) of {args.runs} runs\n")
    print("\n".join(table(results)))
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"date": str(datetime.date.today()), "commit": args.commit, "results": results}, file, indent=1)
            file.write("\n")
    return 1 if any("failed" in found for found in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
