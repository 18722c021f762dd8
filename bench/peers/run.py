#!/usr/bin/env python3
"""lockstep beside its peers on one machine, in one call: the same shapes and lengths, random weights, in turn.

    python3 bench/peers/run.py --model FOLDER_WITH_CONFIG_JSON --output-json FILE [--peers xla,llama] [--modes bf16,f32,w8a16]
                               [--tp 1,2] [--batch 1] [--llama-bench PATH]

Adapters, each used if its program is there and listed as absent if not:
  transformers  torch_decode.py --eager: the model class of transformers as it comes
  torch.compile torch_decode.py: one compiled step with CUDA graphs
  xla           xla_decode.py: JAX, over --tp GPUs by its SPMD partitioner
  llama         llama-bench of llama.cpp with all layers on the GPU, on a GGUF that random_gguf.py writes into --scratch
                (w8a16 stands beside its q8_0)
  vllm          vllm bench latency, twice: with one token of answer, and with all of them
  trtllm        trtllm-bench latency with its PyTorch back end

lockstep runs before, between and after the peers, as a process each time; a peer's process measures --runs times. step_ms: the
host reads each token before it begins the next step ("waiting"), as a plain loop does; behind_ms: it reads it while the next step
runs. Of programs that choose for themselves (lockstep, vllm, trtllm) there is step_ms alone. --output-json is for `lockstep
report`, which computes the ratios. Exit status 1 if lockstep itself failed.
"""
import argparse
import datetime
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.dont_write_bytecode = True
sys.path.insert(0, os.path.dirname(HERE))

import runs

MODES = {"bf16": ["--dtype", "bf16"], "f32": ["--dtype", "f32"], "w8a16": ["--dtype", "bf16", "-q", "w8a16"]}
GGUF = {"bf16": "bf16", "w8a16": "q8_0"}
LONG_NAME = {"bf16": "bfloat16", "f32": "float32"}  # of dtypes, in vllm's and TensorRT-LLM's words


class Absent(Exception):
    """Why a peer has no figures."""


class Case:
    """What all are asked for: weights, ranks, sequences, tokens of their prompts, and further ones that are timed."""

    def __init__(self, args, mode, tp, batch):
        self.args, self.mode, self.tp, self.batch = args, mode, tp, batch
        self.prompt, self.new = args.prompt, args.n


# ---- lockstep ----


def lockstep(case):
    """{metric: value} of one process."""
    args = case.args
    text = (runs.PROMPT * (case.prompt // len(runs.PROMPT) + 1))[:case.prompt]  # as many tokens, without a tokenizer
    room = ["--max-model-len", str(case.prompt + case.new + 64), "--max-num-seqs", str(max(case.batch, 16))]
    run = runs.generate(args.lockstep, args.model, ["--load-format", "dummy", "--device", args.device, "-tp", str(case.tp), *room,
                                                    "-p", text, "--repeat-prompt", str(case.batch), "-n", str(case.new), *MODES[case.mode]])
    case.args.seen_device = run["device"]
    return {"step_ms": run["decode_us"] / run["decode_steps"] / 1e3, "prefill_ms": run["prefill_us"] / 1e3,
            "limit_percent": run["limit_ratio"] * 100}


# ---- Peers: each gives ({metric: [values]}, version), or raises Absent ----


def child(command, timeout_s):
    try:
        return runs.child(command, timeout_s)
    except runs.Failed as why:
        raise Absent(str(why).strip().replace("\n", " ")[-200:]) from why


def python_peer(case, name, *more):
    """What xla_decode.py or torch_decode.py prints."""
    if case.mode not in ("bf16", "f32"):
        raise Absent(f"it has no {case.mode}")
    command = [sys.executable, os.path.join(HERE, name), "--model", case.args.model, "--dtype", case.mode, "--prompt", str(case.prompt),
               "--n", str(case.new), "--batch", str(case.batch), "--runs", str(case.args.runs), *more]
    try:
        said = json.loads(runs.child(command, case.args.timeout).strip().split("\n")[-1])
    except runs.Failed as why:  # its own words, where it had some
        words = str(why)
        at = words.find('{"absent": "')
        raise Absent(words[at + 12:].split('"')[0] if at >= 0 else words.replace("\n", " ")[-200:]) from why
    except ValueError as why:
        raise Absent(f"it printed no JSON: {why}") from why
    return {"step_ms": said["waiting_ms"], "behind_ms": said["behind_ms"], "prefill_ms": [said["prefill_ms"]],
            "compile_s": [said["compile_s"]] if said["compile_s"] else []}, said["versions"]


def torch_device(case):
    if case.tp > 1:
        raise Absent("it runs on one GPU")
    return ["--device", "cpu" if case.args.device == "cpu" else "cuda"]


def llama(case):
    args = case.args
    if case.mode not in GGUF:
        raise Absent(f"no GGUF of {case.mode}")
    if case.tp > 1 or case.batch > 1:
        raise Absent("llama-bench runs one sequence, here on one GPU")
    program = args.llama_bench or shutil.which("llama-bench")
    if not program or not os.path.exists(program):
        raise Absent("no llama-bench (--llama-bench)")
    file = os.path.join(args.scratch, f"random-{GGUF[case.mode]}.gguf")
    try:
        child([sys.executable, os.path.join(HERE, "random_gguf.py"), args.model, file, "--type", GGUF[case.mode]], args.timeout)
        on_gpu = [] if args.device == "cpu" else ["-ngl", "99", "-fa", "1"]
        said = json.loads(child([program, "-m", file, *on_gpu, "-p", str(case.prompt), "-n", str(case.new), "-d", str(case.prompt), "-r",
                                 str(args.runs), "-o", "json"], args.timeout))
        line = next(line for line in said if line["n_gen"] == case.new)
        return {"step_ms": [ns / case.new / 1e6 for ns in line["samples_ns"]]}, f"llama.cpp {line['build_commit']}"
    except (ValueError, KeyError, StopIteration) as why:
        raise Absent(f"llama-bench said something else: {why!r}") from why
    finally:
        if os.path.exists(file):
            os.unlink(file)


def program_version(program, *arguments):
    """The last line that it prints of its version."""
    return child([program, *arguments], 120).strip().split("\n")[-1]


def vllm(case):
    program = shutil.which("vllm")
    if not program:
        raise Absent("no vllm on the PATH")
    if case.mode not in LONG_NAME:
        raise Absent(f"it has no {case.mode} that is made up from a config")
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for new in (1, case.new + 1):
            file = os.path.join(folder, f"{new}.json")
            child([program, "bench", "latency", "--model", case.args.model, "--load-format", "dummy", "--dtype", LONG_NAME[case.mode],
                   "--tensor-parallel-size", str(case.tp), "--input-len", str(case.prompt), "--output-len", str(new), "--batch-size",
                   str(case.batch), "--max-model-len", str(case.prompt + case.new + 64), "--no-enable-prefix-caching", "--num-iters-warmup", "3",
                   "--num-iters", str(case.args.runs), "--output-json", file], case.args.timeout)
            with open(file, encoding="utf-8") as results:
                seconds[new] = json.load(results)["latencies"]
    first = statistics.median(seconds[1])
    return {"step_ms": [(all_s - first) * 1e3 / case.new for all_s in seconds[case.new + 1]],
            "prefill_ms": [s * 1e3 for s in seconds[1]]}, f"vllm {program_version(program, '--version')}"


def find_key(value, key):
    """The first number of that name anywhere in a document."""
    if isinstance(value, dict):
        if isinstance(value.get(key), (int, float)):
            return value[key]
        value = list(value.values())
    if isinstance(value, list):
        return next((found for item in value if (found := find_key(item, key)) is not None), None)
    return None


def trtllm(case):
    program = shutil.which("trtllm-bench")
    if not program:
        raise Absent("no trtllm-bench on the PATH")
    if case.mode not in LONG_NAME or case.batch > 1:
        raise Absent("its latency mode runs one sequence, in the config's type")
    with open(os.path.join(case.args.model, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    if (config.get("torch_dtype") or config.get("dtype")) != LONG_NAME[case.mode]:
        raise Absent(f"the config's type is not {LONG_NAME[case.mode]}")
    with tempfile.TemporaryDirectory() as folder:
        data, options, report = (os.path.join(folder, name) for name in ("data.jsonl", "options.yml", "report.json"))
        with open(data, "w", encoding="utf-8") as file:
            for i in range(case.args.runs):
                ids = random.Random(i).choices(range(1000, 4000), k=case.prompt)
                file.write(json.dumps({"task_id": i, "input_ids": ids, "output_tokens": case.new + 1}) + "\n")
        with open(options, "w", encoding="utf-8") as file:
            file.write("load_format: dummy\n")
        child([program, "--model", case.args.model, "--model_path", case.args.model, "latency", "--backend", "pytorch", "--dataset", data,
               "--tp", str(case.tp), "--concurrency", "1", "--extra_llm_api_options", options, "--report_json", report], case.args.timeout)
        with open(report, encoding="utf-8") as file:
            said = json.load(file)
    step, first = find_key(said, "avg_tpot_ms"), find_key(said, "avg_ttft_ms")
    if step is None:
        raise Absent("its report has no avg_tpot_ms")
    return {"step_ms": [step], "prefill_ms": [first] if first is not None else []}, f"TensorRT-LLM {find_key(said, 'version') or ''}".strip()


PEERS = {
    "transformers": lambda case: python_peer(case, "torch_decode.py", "--eager", *torch_device(case)),
    "torch.compile": lambda case: python_peer(case, "torch_decode.py", *torch_device(case)),
    "xla": lambda case: python_peer(case, "xla_decode.py", "--tp", str(case.tp)),
    "llama": llama,
    "vllm": vllm,
    "trtllm": trtllm,
}
MORE_IS_BETTER = {"limit_percent"}


# ---- Rows ----


def metric(name, values):
    return {"better": "more" if name in MORE_IS_BETTER else "less", "runs": values, "n": len(values), "median": statistics.median(values),
            "min": min(values), "max": max(values)}


def row(name, case, found=None, version="", absent=None):
    settings = {"mode": case.mode, "tp": case.tp, "batch": case.batch, "input": case.prompt, "output": case.new}
    if version:
        settings["version"] = version
    made = {"test": name, "settings": settings}
    if absent is not None:
        made["absent"] = absent
    else:
        made["metrics"] = {key: metric(key, values) for key, values in found.items() if values}
    return made


def measure(case):
    """lockstep's row and the peers', run in turn."""
    own, rows, failed = {}, [], None

    def once():
        nonlocal failed
        try:
            for key, value in lockstep(case).items() if failed is None else ():
                own.setdefault(key, []).append(value)
        except (runs.Failed, ValueError, KeyError, ZeroDivisionError) as why:
            failed = str(why).strip().replace("\n", " ")[-200:]

    once()
    for name in case.args.peers.split(","):
        try:
            found, version = PEERS[name](case)
            rows.append(row(name, case, found, version))
        except Absent as why:
            rows.append(row(name, case, absent=str(why)))
        except (OSError, KeyError, ValueError, TypeError) as why:
            rows.append(row(name, case, absent=f"what it said could not be read: {why!r}"))
        print(f"{case.mode} tp {case.tp} batch {case.batch}, {name}: {json.dumps(rows[-1])[:300]}", file=sys.stderr, flush=True)
        once()
    while failed is None and len(own.get("step_ms", [])) < case.args.runs:
        once()
    version = f"lockstep {case.args.commit}".strip()
    return [row("lockstep", case, own, version, failed)] + rows


def driver():
    try:
        said = subprocess.run(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True, check=False)
        return said.stdout.strip().split("\n")[0]
    except OSError:
        return ""


def document(args, rows):
    with open(os.path.join(args.model, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    device = {"name": args.seen_device, **({"driver": driver()} if driver() else {})}
    return {"lockstep_results": 1, "what": "peers", "version": runs.child([args.lockstep, "--version"]).split()[1], "commit": args.commit,
            "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "command": " ".join(["bench/peers/run.py", *sys.argv[1:]]), "repetitions": args.runs, "device": device,
            "model": {"name": args.name or os.path.basename(os.path.abspath(args.model)), "layers": config["num_hidden_layers"],
                      "load_format": "dummy"}, "rows": rows}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--lockstep", default=os.path.join(ROOT, "build/gpu/lockstep"))
    parser.add_argument("--model", required=True, help="folder with config.json, without a tokenizer.json")
    parser.add_argument("--name", help="what results call it (default: the folder's name)")
    parser.add_argument("--modes", default="bf16,f32,w8a16")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--tp", default="1")
    parser.add_argument("--batch", default="1")
    parser.add_argument("--prompt", type=int, default=26, help="tokens")
    parser.add_argument("--n", type=int, default=256, help="decode steps")
    parser.add_argument("--llama-bench", help="(default: the one on the PATH)")
    parser.add_argument("--scratch", default="/dev/shm", help="folder for GGUF files, of 8 GB each")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try this program out")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--timeout", type=float, default=300, help="seconds a peer's process may take")
    parser.add_argument("--commit", default="", help="of the build, for the record")
    parser.add_argument("--output-json", required=True, help="file for lockstep report")
    args = parser.parse_args()
    args.seen_device = "no device"
    if not args.commit:
        described = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
        args.commit = described.stdout.strip()
    unknown = set(args.modes.split(",")) - set(MODES) | set(args.peers.split(",")) - set(PEERS)
    if unknown:
        sys.exit(f"run.py: {', '.join(sorted(unknown))}: modes are {', '.join(MODES)}; peers are {', '.join(PEERS)}")
    return args


def main():
    args = arguments()
    rows = []
    for mode in args.modes.split(","):
        for tp in args.tp.split(","):
            for batch in args.batch.split(","):
                rows += measure(Case(args, mode, int(tp), int(batch)))
                with open(args.output_json, "w", encoding="utf-8") as file:  # what there is, should the machine be taken away
                    json.dump(document(args, rows), file, indent=1)
                    file.write("\n")
    return 1 if any(r["test"] == "lockstep" and "absent" in r for r in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
