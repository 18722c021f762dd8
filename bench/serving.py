#!/usr/bin/env python3
"""What `lockstep serve` reaches, measured by one command: a line a row, and exit status 1 if one falls short.

    python3 bench/serving.py [--seconds 60] [--rounds 3] [--json FILE] [--only streams,prefix,idle,peer]
        [--llama-server PATH --pair none:FOLDER:MODEL-bf16.gguf --pair w8a8:FOLDER:MODEL-q8_0.gguf]
    python3 bench/serving.py --lockstep build/gpu/lockstep --device cuda --only prefix,idle

streams  64 streams of the built-in model for --seconds, against `lockstep generate` at the same batch before and behind it.
prefix   2,000 tokens that two prompts have in common. On CPU cores, the shapes of Qwen3-0.6B: the second first token against the first.
         On a GPU, the shapes of Qwen3-4B: ms that the second one takes longer than a prompt of as many tokens as it has not in common.
idle     the processor time of a server that has nothing to do.
peer     8 streams against llama-server with the same weights at the same precision (a pair is our --quantization, a folder
         for us and a file for the peer), run in turn, medians of --rounds.

The rows streams and peer are of CPU cores. The load comes from `lockstep bench serve` on the same cores, and is greedy. Let nothing else run meanwhile.
"""
import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
sys.dont_write_bytecode = True
sys.path[:0] = [HERE]

import runs

INPUT, OUTPUT = 32, 256


class Server:
    """A server of OpenAI's API as a process, ready when entered."""

    def __init__(self, command):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = [*command, "--port", str(self.port)]

    def __enter__(self):
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                    if answer.status == 200:
                        return self
            except OSError:
                pass
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise runs.Failed(f"not ready: {' '.join(self.command)}")
            time.sleep(0.1)

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self.log.close()

    def load(self, lockstep, prompts, streams, n_input, n_output):
        """One `lockstep bench serve`: its figures by name."""
        with tempfile.NamedTemporaryFile(suffix=".json") as results:
            runs.child([lockstep, "bench", "serve", "--base-url", self.url, "--num-prompts", str(prompts), "--max-concurrency", str(streams),
                        "--random-input-len", str(n_input), "--random-output-len", str(n_output), "--temp", "0", "--seed", "1",
                        "--output-json", results.name], timeout_s=1200)
            metrics = json.load(results)["rows"][0]["metrics"]
        return {name: value["median"] for name, value in metrics.items()}

    def first_token_s(self, ids):
        body = json.dumps({"prompt": ids, "max_tokens": 2, "stream": True, "temperature": 0, "ignore_eos": True}).encode()
        ask = urllib.request.Request(f"{self.url}/v1/completions", body, {"Content-Type": "application/json"})
        begin = time.perf_counter()
        with urllib.request.urlopen(ask, timeout=600) as answer:
            answer.readline()
            first = time.perf_counter() - begin
            answer.read()
        return first

    def processor_s(self):
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def generated(args, prompt):
    """Tokens a second of whole answers, 64 at a time, of `lockstep generate`."""
    t = runs.generate(args.lockstep, "demo", ["--max-num-seqs", "64", "--repeat-prompt", "64", "--max-model-len", "512", "-f", prompt,
                                              "-n", str(OUTPUT)])
    return 64 * OUTPUT / (t["prefill_us"] + t["decode_us"]) * 1e6


def streams(args):
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as prompt:
        prompt.write("a" * INPUT)
        prompt.flush()
        alone = [generated(args, prompt.name) for _ in range(3)]
        prompts = round(0.9 * statistics.median(alone) * args.seconds / OUTPUT / 64 + 0.5) * 64
        with Server([args.lockstep, "serve", "demo", "--max-num-seqs", "64", "--max-model-len", "512"]) as server:
            served = server.load(args.lockstep, prompts, 64, INPUT, OUTPUT)
        alone += [generated(args, prompt.name) for _ in range(3)]
    share = served["output_tokens_per_s"] / statistics.median(alone)
    return {"what": f"64 streams, {prompts} answers of {OUTPUT} tokens in {prompts * OUTPUT / served['output_tokens_per_s']:.0f} s, "
                    f"{served['failed_percent']:.0f} % failed: share of `generate` at batch 64 ({runs.spread(alone, 0)} tokens/s)",
            "figure": share, "must": 0.80, "better": "more", "good": served["failed_percent"] == 0, "runs": {"generate": alone, "serve": served}}


PAGE = 64 # tokens, of which whole ones are kept


def prefix(args):
    times = []
    common = [300 + i * 7 % 3000 for i in range(2000)]
    on_gpu = args.device == "cuda"
    model = "Qwen/Qwen3-4B" if on_gpu else "Qwen/Qwen3-0.6B"
    with Server([args.lockstep, "serve", model, "--load-format", "dummy", "--device", args.device, "--max-num-seqs", "2",
                 "--max-model-len", "2560"]) as server:
        for _ in range(3):
            server.first_token_s([5, 6, 7])
        for i in range(args.rounds):
            ids = [11 + i, *common]
            n_new = len(ids) % PAGE + 20
            times.append((server.first_token_s([*ids, *range(40, 60)]), server.first_token_s([*ids, *range(80, 100)]),
                          server.first_token_s([4000 + i, *range(5000, 5000 + n_new - 1)])))
    first, second, alone = (statistics.median(t[i] for t in times) * 1e3 for i in range(3))
    ratio, more = (statistics.median(f(*t) for t in times) for f in (lambda a, b, c: b / a, lambda a, b, c: (b - c) * 1e3))
    return {"what": f"2,000 tokens in common, shapes of {model}: first token {first:.1f} ms, second request's {second:.1f} ms, that of a prompt of "
                    f"the {n_new} tokens that are new {alone:.1f} ms",
            "figure": more if on_gpu else ratio, "must": 1.0 if on_gpu else 0.15, "better": "less", "good": True, "runs": times}


def idle(args):
    shares = []
    with Server([args.lockstep, "serve", "demo", "--device", args.device]) as server:
        server.first_token_s([5, 6, 7])
        for _ in range(args.rounds):
            before = server.processor_s()
            time.sleep(10)
            shares.append((server.processor_s() - before) / 10)
    return {"what": "processor time of an idle server, share of one core", "figure": max(shares), "must": 0.01, "better": "less", "good": True,
            "runs": shares}


def peer(args, pair):
    quantization, folder, gguf = pair.split(":")
    ours, theirs = [], []
    for _ in range(args.rounds):
        for found, command in ((ours, [args.lockstep, "serve", folder, "-q", quantization, "--max-num-seqs", "8", "--max-model-len", "256"]),
                               (theirs, [args.llama_server, "-m", gguf, "-t", str(os.cpu_count()), "-np", "8", "-c", "2048"])):
            with Server(command) as server:
                server.load(args.lockstep, 8, 8, 16, 4)
                found.append(server.load(args.lockstep, 16, 8, 64, 64)["output_tokens_per_s"])
    return {"what": f"8 streams, 64 in and 64 out, {os.path.basename(gguf)}: {runs.spread(ours, 1)} tokens/s against llama-server's "
                    f"{runs.spread(theirs, 1)}",
            "figure": statistics.median(ours) / statistics.median(theirs), "must": 1.0, "better": "more", "good": True,
            "runs": {"ours": ours, "llama-server": theirs}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lockstep", default=os.path.join(os.path.dirname(HERE), "build", "lockstep"))
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json")
    parser.add_argument("--only", default="streams,prefix,idle,peer")
    parser.add_argument("--llama-server")
    parser.add_argument("--pair", action="append", default=[])
    args = parser.parse_args()
    only = args.only.split(",")
    rows = [(name, lambda f=f: f(args)) for name, f in (("streams", streams), ("prefix", prefix), ("idle", idle)) if name in only]
    if "peer" in only and not (args.llama_server and args.pair):
        print("peer: absent: no --llama-server and --pair")
    elif "peer" in only:
        rows += [(f"peer {pair.split(':')[0]}", lambda pair=pair: peer(args, pair)) for pair in args.pair]
    short, found = False, {}
    for name, measure in rows:
        try:
            row = measure()
        except (runs.Failed, OSError, ValueError, KeyError) as why:
            print(f"{name}: failed: {why}", flush=True)
            short = True
            continue
        good = row["good"] and (row["figure"] >= row["must"] if row["better"] == "more" else row["figure"] <= row["must"])
        short |= not good
        found[name] = row
        print(f"{name}: {row['figure']:.3f} (must be {'at least' if row['better'] == 'more' else 'at most'} {row['must']}): "
              f"{'ok' if good else 'SHORT'}: {row['what']}", flush=True)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"lockstep": runs.child([args.lockstep, "--version"]).split("\n")[0], "command": " ".join(sys.argv[1:]), "rows": found}, file,
                      indent=1)
            file.write("\n")
    return 1 if short else 0


if __name__ == "__main__":
    sys.exit(main())
