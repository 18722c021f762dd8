#!/usr/bin/env python3
"""What lockstep reaches on one GPU, measured by one command: a Markdown table, and JSON with every run.

    make ARCHS=sm_90a gpu-bundle
    python3 bench/one_gpu.py [--checkpoint FOLDER --config FOLDER] [--json FILE] [--markdown FILE]

Weights are made up, of shapes that lockstep knows by name. --checkpoint is a folder that holds or receives Qwen3-4B as
safetensors (8 GB, made by tools/dummy_weights.py, which needs torch, from the config.json and tokenizer.json in --config): put
it where it stays in memory, such as /dev/shm. Rows are run in turn, --runs rounds of them, each run a process of its own; a row's figure
is the median. The limit is what lockstep measures in the same process: its own loads of the same weights. A row that cannot be
run says why and leaves the others alone. Exit status 1 if a row failed to run or reached less than it must.
"""
import argparse
import ctypes
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
sys.dont_write_bytecode = True
sys.path[:0] = [HERE, os.path.join(ROOT, "examples")]

import runs

DUMMY = ["--load-format", "dummy"]
SHORT = [*runs.ROOM, "-p", runs.PROMPT]
DECODE = [*DUMMY, *SHORT, "-n", "256"]


class Row:
    """key; what is measured; how: options of `lockstep generate`; kind: which figure of a run counts; must and aim."""

    def __init__(self, key, what, model, options, kind, must, aim):
        self.key, self.what, self.model, self.options, self.kind, self.must, self.aim = key, what, model, options, kind, must, aim
        self.found, self.failed = [], None

    # Kinds: "limit" % of the limit (more is better); "step" step over batch 1's; "first" ms or s (less is better).
    def figure(self, run, base_ms):
        if self.kind == "limit":
            return run["limit_ratio"] * 100
        if self.kind == "step":
            return run["ms_per_step"] / base_ms if base_ms else None
        return run["first"]

    def unit(self):
        return {"limit": "%", "step": "x", "ms": "ms", "s": "s"}[self.kind]

    def verdict(self, figure):
        better = (lambda limit: figure >= limit) if self.kind == "limit" else (lambda limit: figure <= limit)
        return "aim" if better(self.aim) else "must" if better(self.must) else "short"


def rows_of(args, long_prompt):
    whole = [*DUMMY, "--max-model-len", "8320", "--max-num-seqs", "1", "-f", long_prompt, "-n", "64"]
    rows = [
        Row("qwen_bf16", "Qwen3-4B bf16, batch 1", args.qwen, [*DECODE, "--dtype", "bf16"], "limit", 72, 80),
        Row("mistral_bf16", "Mistral-7B bf16, batch 1", args.mistral, [*DECODE, "--dtype", "bf16"], "limit", 80, 86),
        Row("qwen_f32", "Qwen3-4B f32, batch 1", args.qwen, [*DECODE, "--dtype", "f32"], "limit", 82, 88),
        Row("qwen_int8", "Qwen3-4B int8 (w8a16, bf16), batch 1", args.qwen, [*DECODE, "--dtype", "bf16", "-q", "w8a16"], "limit", 55, 65),
        Row("batch_8", "batch 8, step over batch 1", args.qwen, [*DECODE, "--dtype", "bf16", "--repeat-prompt", "8"], "step", 1.15, 1.05),
        Row("batch_16", "batch 16, step over batch 1", args.qwen, [*DECODE, "--dtype", "bf16", "--repeat-prompt", "16"], "step", 1.3, 1.15),
        Row("context_8192", "context 8192, batch 1, KV counted", args.qwen, [*whole, "--dtype", "bf16"], "limit", 70, 80),
        Row("ttft", "first token of 26, warm", args.qwen, None, "ms", 7, 5),
        Row("start_dummy", "process start to first token, dummy weights", args.qwen, [*DUMMY, *SHORT, "-n", "1"], "s", 1.5, 1),
    ]
    if args.checkpoint:
        rows.append(Row("start_checkpoint", "process start to first token, 8 GB in the page cache", args.checkpoint,
                        [*SHORT, "-n", "4"], "s", 3, 1.5))
    wanted = args.rows.split(",") if args.rows else [row.key for row in rows]
    unknown = set(wanted) - {row.key for row in rows}
    if unknown:
        sys.exit(f"one_gpu: --rows {','.join(sorted(unknown))}: the rows are {', '.join(row.key for row in rows)}")
    return [row for row in rows if row.key in wanted]


# ---- One run ----


def first_token_child(args):
    """In a process of its own: ms from submission to the first token of 26, in an engine that is warm. Prints JSON."""
    import generate as api
    library = api.open_library(args.library)
    error, model, engine, taken = api.ls_error(), ctypes.c_void_p(), ctypes.c_void_p(), []

    def check(status):
        if status < 0:
            sys.exit(error.text.decode())
        return status

    check(library.ls_model_open(api.ls_model_params(ctypes.sizeof(api.ls_model_params), model=args.qwen.encode(), load_format=1), model, error))
    engine_params = api.ls_engine_params(ctypes.sizeof(api.ls_engine_params), dtype=2, device=args.device.encode(), max_model_len_tokens=4096)
    check(library.ls_engine_open(model, engine_params, engine, error))
    for _ in range(args.first_tokens + 3):  # three to warm up
        params = api.ls_request_params(ctypes.sizeof(api.ls_request_params), prompt=runs.PROMPT.encode(), prompt_bytes=26, max_tokens=1, top_p=1,
                                       logprobs=-1, prompt_logprobs=-1, ignore_eos=True)
        at, request = [], ctypes.c_void_p()
        params.on_text = api.ls_text_fn(lambda *_, at=at: at.append(time.perf_counter()))
        start = time.perf_counter()
        check(library.ls_request_submit(engine, params, request, error))
        while not at and check(library.ls_engine_step(engine, error)) == 0:
            pass
        taken.append((at[0] - start) * 1e3)
        library.ls_request_free(request)
    library.ls_engine_close(engine)
    library.ls_model_close(model)
    print(json.dumps(taken[3:]))


def one_run(args, row):
    if row.options is None:
        command = [sys.executable, os.path.abspath(__file__), "--first-tokens", "20", "--library", args.library, "--qwen", args.qwen,
                   "--device", args.device]
        taken = json.loads(runs.child(command).strip().split("\n")[-1])
        return {"first": statistics.median(taken), "each_ms": taken, "command": " ".join(command[1:])}
    run = runs.generate(args.lockstep, row.model, ["--device", args.device, *row.options])
    run["first"] = run["first_token_s"]
    if run["decode_steps"]:
        run["ms_per_step"] = run["decode_us"] / run["decode_steps"] / 1e3
    return run


def make_checkpoint(args):
    """Writes one unless it is there; takes the row out if it cannot."""
    if args.checkpoint is None or os.path.exists(os.path.join(args.checkpoint, "model.safetensors.index.json")):
        return
    maker = os.path.join(ROOT, "tools", "dummy_weights.py")
    try:
        runs.child([sys.executable, maker, args.config or "", args.checkpoint, "--dtype", "bfloat16", "--device", "cuda"])
    except runs.Failed as why:
        print(f"start_checkpoint: no checkpoint could be made: {why}", flush=True)
        args.checkpoint = None


# ---- What came out ----


def measured(row, base_ms):
    """Cells: figure with spread, ms a step, % of the limit, verdict."""
    if row.failed or not row.found:
        return f"not run: {(row.failed or '')[:60]}", "", "", "-"
    figures = [row.figure(run, base_ms) for run in row.found]
    if None in figures:
        return "not run: needs the row qwen_bf16", "", "", "-"
    steps = [run["ms_per_step"] for run in row.found if "ms_per_step" in run]
    limits = [run["limit_ratio"] * 100 for run in row.found if run.get("limit_ratio")]
    digits = {"limit": 1, "step": 3, "ms": 2, "s": 3}[row.kind]
    unit = f" {row.unit()}" if row.kind != "step" else "x"
    text = f"{statistics.median(figures):.{digits}f}{unit} ({min(figures):.{digits}f} to {max(figures):.{digits}f})"
    return (text, runs.spread(steps) if steps else "", f"{statistics.median(limits):.1f}" if limits else "",
            row.verdict(statistics.median(figures)))


def table(rows):
    base = next((row for row in rows if row.key == "qwen_bf16" and row.found), None)
    base_ms = statistics.median(run["ms_per_step"] for run in base.found) if base else None
    lines = ["| what | must | aim | measured | ms a step | % of the limit | reached |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        text, steps, limits, verdict = measured(row, base_ms)
        unit = f" {row.unit()}" if row.kind != "step" else "x"
        lines.append(f"| {row.what} | {row.must}{unit} | {row.aim}{unit} | {text} | {steps} | {limits} | {verdict} |")
    return lines, base_ms


def steadiness(rows):
    """A line on the limit that the processes measured: rows can be compared if it stood still."""
    seen = [run["read_gb_per_s"] for row in rows for run in row.found if run.get("read_gb_per_s") and run["dtype"] == "bf16"]
    if not seen:
        return "the limit was not measured"
    apart = (max(seen) / min(seen) - 1) * 100
    return f"the limit, measured in {len(seen)} processes: {runs.spread(seen, 0)} GB/s{'' if apart < 3 else f': {apart:.1f} % APART, run it again'}"


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--lockstep", default=os.path.join(ROOT, "build/gpu/lockstep"))
    parser.add_argument("--library", default=os.path.join(ROOT, "build/gpu/liblockstep.so"))
    parser.add_argument("--qwen", default="Qwen/Qwen3-4B", help="a name whose shapes lockstep knows, or a folder with config.json but no tokenizer")
    parser.add_argument("--mistral", default="mistralai/Mistral-7B-v0.1")
    parser.add_argument("--checkpoint", help="folder of Qwen3-4B as safetensors; made, if it is not there, from --config")
    parser.add_argument("--config", help="folder with Qwen3-4B's config.json and tokenizer.json")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N; cpu tries this program out on a small model")
    parser.add_argument("--rows", help="only these, commas between them")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--commit", default="", help="of the build, for the record")
    parser.add_argument("--json", help="file for every run")
    parser.add_argument("--markdown", help="file for the table")
    parser.add_argument("--first-tokens", type=int, default=0, help=argparse.SUPPRESS)  # the child of the row "ttft"
    return parser.parse_args()


def main():
    args = arguments()
    if args.first_tokens:
        return first_token_child(args)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as long_prompt:
        long_prompt.write(("a" * 63 + "\n") * 128)
        long_prompt.flush()
        make_checkpoint(args)
        rows = rows_of(args, long_prompt.name)
        for i in range(args.runs):
            for row in rows:
                if row.failed:
                    continue
                try:
                    row.found.append(one_run(args, row))
                except (runs.Failed, subprocess.SubprocessError, ValueError, KeyError) as why:
                    row.failed = str(why)
                    print(f"{row.key}: {why}", flush=True)
            print(f"round {i + 1} of {args.runs} done", file=sys.stderr, flush=True)
    lines, base_ms = table(rows)
    device = next((run["device"] for row in rows for run in row.found if "device" in run), "no device")
    head = f"{device}, {datetime.date.today()}, lockstep {args.commit or runs.child([args.lockstep, '--version']).split()[1]}, {args.runs} runs a row"
    text = "\n".join([f"{head}; {steadiness(rows)}", "", *lines])
    print(text)
    if args.markdown:
        with open(args.markdown, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    if args.json:
        found = {row.key: {"what": row.what, "must": row.must, "aim": row.aim, "unit": row.unit(), "failed": row.failed, "runs": row.found}
                 for row in rows}
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"device": device, "date": str(datetime.date.today()), "commit": args.commit, "rows": found}, file, indent=1)
            file.write("\n")
    return 0 if all(measured(row, base_ms)[3] in ("aim", "must") for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
