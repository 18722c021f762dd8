"""Runs of lockstep as a program, for the benchmarks beside this file: whole processes, timed from outside and by themselves."""
import json
import os
import statistics
import subprocess
import time

PROMPT = "26 bytes are 26 tokens ..."  # a model without a tokenizer takes bytes as ids
# As many pages and graphs as a small server has; what is measured is the same with fewer.
ROOM = ["--max-model-len", "4096", "--max-num-seqs", "16"]


class Failed(Exception):
    """A program that ended badly, with the end of what it said."""


def child(command, timeout_s=300):
    """Its output; raises Failed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(str(error)) from error
    if done.returncode != 0:
        raise Failed(f"exit {done.returncode}: {(done.stderr.strip() or done.stdout.strip() or command[0])[-300:]}")
    return done.stdout


def generate(lockstep, model, options, timeout_s=120):
    """One `lockstep generate`: its timeline, and as first_token_s the time from before the fork to its first byte of output
    behind PROMPT, which is the first token of an answer that streams. A model without a tokenizer does not repeat the prompt."""
    repeated = len(PROMPT) if os.path.exists(os.path.join(model, "tokenizer.json")) else 0
    command = [lockstep, "generate", "-m", model, "--temp", "0", "--seed", "1", "--ignore-eos", "--timeline", "json", *options]
    start = time.perf_counter()
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    except OSError as error:
        raise Failed(str(error)) from error
    with process:
        while repeated >= 0:
            got = os.read(process.stdout.fileno(), repeated + 1)
            repeated -= len(got) if got else repeated + 1
        first_token_s = time.perf_counter() - start
        try:
            _, said = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired as error:
            process.kill()
            raise Failed(f"no end after {timeout_s} s: {' '.join(command)}") from error
    total_s = time.perf_counter() - start
    lines = said.decode(errors="replace").strip().split("\n")
    if process.returncode != 0:
        raise Failed(f"exit {process.returncode}: {lines[-1][-300:]}")
    timeline = json.loads(lines[-1])["timeline"]
    return {"first_token_s": first_token_s, "total_s": total_s, "command": " ".join(command[1:]), **timeline}


def spread(values, digits=3):
    """'3.952 (3.951 to 3.955)'"""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
