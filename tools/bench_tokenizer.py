#!/usr/bin/env python3
"""Our tokenizer against Hugging Face `tokenizers` on one thread: encoding and opening.

    make && python tools/bench_tokenizer.py [--data ../shared/data] [--runs 5]

Medians of the runs, both sides measured in turn, ids compared. Encoding is of 1 MiB each of English, Chinese and code
(this tree's), and, once, of worst cases: one character without end. `tokenizers` is timed by the faster of encode() and
encode_batch_fast(), which leaves out offsets. Needs the packages of tools/requirements.txt and build/liblockstep.a.
"""
import argparse
import glob
import os
import random
import shlex
import statistics
import subprocess
import tempfile
import time

os.environ["TOKENIZERS_PARALLELISM"] = "false"
import tokenizers  # noqa: E402 (reads the variable)

MIB = 1 << 20
HAN = ("\u7684\u4e00\u662f\u4e0d\u4e86\u4eba\u6211\u5728\u6709\u4ed6\u8fd9\u4e3a\u4e4b\u5927\u6765\u4ee5\u4e2a\u4e2d\u4e0a"
       "\u4eec\u5230\u8bf4\u56fd\u548c\u5730\u4e5f\u5b50\u65f6\u9053\u51fa\u800c\u8981\u4e8e\u5c31\u4e0b\u5f97\u53ef\u4f60"
       "\u5e74\u751f\u81ea\u4f1a\u90a3\u540e\u80fd\u5bf9\u7740\u4e8b\u5176\u91cc\u6240\u53bb\u884c\u8fc7\u5bb6\u5341\u7528"
       "\u53d1\u5929\u5982\u7136\u4f5c\u65b9\u6210\u8005\u591a\u65e5\u90fd\u4e09\u5c0f\u519b\u4e8c\u65e0\u540c\u4e48\u7ecf")
FOLDERS = ("gpt2", "Qwen3", "Mistral-7B-v0.1", "Mistral-7B-Instruct-v0.3")


def texts(data):
    with open(f"{data}/text/sherlock.txt", encoding="utf-8") as f:
        english = f.read()
    code = "".join(open(name, encoding="utf-8").read() for name in sorted(glob.glob("src/**/*.[ch]", recursive=True)))
    rng, chinese = random.Random(1), []
    for _ in range(MIB // 24):
        chinese.append("".join(rng.choice(HAN) for _ in range(rng.randint(4, 14))) + rng.choice("\uff0c\uff0c\u3002\n"))
    for name, text in (("English", english), ("Chinese", "".join(chinese)), ("code", code)):
        yield name, (text * (1 + MIB // len(text))).encode()[:MIB].decode(errors="ignore")
    for character in ("a", " ", "\u4f60", "\u2581", "."):
        yield f"only U+{ord(character):04X}", character * (MIB // len(character.encode()))


def fnv(ids):
    value = 0xCBF29CE484222325
    for i in ids:
        for shift in (0, 8, 16, 24):
            value = (value ^ (i >> shift & 255)) * 0x100000001B3 & (1 << 64) - 1
    return value


def timed(call):
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def build(folder):
    program = f"{folder}/bench_tokenizer"
    subprocess.check_call(shlex.split(f"gcc -std=c17 -O2 -D_GNU_SOURCE -Isrc -Iinclude tools/bench_tokenizer.c "
                                      f"build/liblockstep.a -ljansson -lpcre2-8 -lutf8proc -lm -pthread -o {program}"))
    return program


def encode_row(program, path, theirs, name, text, text_path, runs):
    ours, other = [], []
    for _ in range(runs):
        out = subprocess.check_output([program, "encode", path, text_path, "1"], text=True).split()
        ours.append(float(out[0]))
        seconds, encoding = timed(lambda: theirs.encode(text, add_special_tokens=False))
        fast, _ = timed(lambda: theirs.encode_batch_fast([text], add_special_tokens=False))
        other.append(min(seconds, fast))
        if seconds > 20:
            break  # their worst cases: one run says it
    same = int(out[1]) == len(encoding.ids) and int(out[2], 16) == fnv(encoding.ids)
    a, b = statistics.median(ours), statistics.median(other)
    print(f"{os.path.basename(os.path.dirname(path)):26} {name:12} {a:8.3f} s {b:8.3f} s {b / a:8.1f} x"
          f"  {'same ids' if same else 'OTHER IDS'}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        program = build(folder)
        print(f"medians of {args.runs}: ours, tokenizers {tokenizers.__version__}, ratio")
        for name in FOLDERS:
            path = f"{args.data}/tokenizers/{name}/tokenizer.json"
            theirs = tokenizers.Tokenizer.from_file(path)
            for kind, text in texts(args.data):
                with open(f"{folder}/text", "w", encoding="utf-8", newline="") as f:
                    f.write(text)
                runs = 1 if kind.startswith("only") else args.runs
                encode_row(program, path, theirs, kind, text, f"{folder}/text", runs)
        for name in FOLDERS:
            path = f"{args.data}/tokenizers/{name}/tokenizer.json"
            row = []
            for cache in ("-", f"{folder}/cache"):
                if cache != "-":
                    subprocess.check_call([program, "open", path, cache, "1"], stdout=subprocess.DEVNULL)
                runs = [float(subprocess.check_output([program, "open", path, cache, "1"])) for _ in range(args.runs)]
                row.append(statistics.median(runs))
            print(f"{name:26} open {row[0]:.3f} s, from the cache {row[1]:.3f} s")


if __name__ == "__main__":
    main()
