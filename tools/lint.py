#!/usr/bin/env python3
"""The rules of this repository that a program can check. Called by `make lint` and `make format`.

usage: tools/lint.py [--library liblockstep.a] [-v] | --self-test | --format

Prints `file:line: rule: what to do` for each breach and exits 1 if there was one. --library checks the objects of that
archive for mutable globals as well. -v also lists functions on their way to being too long. --self-test proves on a
made-up tree that each rule can fire, and that each keeps quiet about what is allowed.
"""
import argparse
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile

LAYERS = ["base", "backend", "file", "text", "rank", "model", "engine", "server", "cli"]  # bottom first
OUTSIDE = {"server", "cli"}  # users of the public header: nothing inside but base
MAX_FUNCTION, LONG_FUNCTION, MAX_FILE, MAX_TEST_FILE = 100, 60, 800, 1000
MAX_PUBLIC_HEADER = 900  # there is one, and most of it is comments
CLANG_FORMAT = 14  # other versions break lines differently, so only this one judges
C_FOLDERS = ("src", "include", "tests", "examples", "bench", "tools")
SKIP = {".git", "build", ".carry", "__pycache__", "golden", "corpus", "results", "demo"}
WORDS = "TO" "DO|FIX" "ME|X" "XX"
INEXACT = r"-f(fast|unsafe|associative|finite)-math|-O" r"fast"


def files(root, folders=(".",), ends=("",)):
    for folder in folders:
        for where, inner, names in os.walk(os.path.join(root, folder)):
            inner[:] = sorted(set(inner) - SKIP)
            for name in sorted(names):
                path = os.path.normpath(os.path.join(where, name))
                if name.endswith(ends) and not os.path.islink(path):
                    yield os.path.relpath(path, root)


def read(root, path):
    with open(os.path.join(root, path), encoding="utf-8", errors="replace") as file:
        return file.read()


def blank(text, strings=True):
    """C without comments (and strings): their characters become blanks, so that lines and columns stay."""
    token = r"/\*.*?\*/|//[^\n]*" + (r'|"(?:\\.|[^"\\\n])*"|' r"'(?:\\.|[^'\\\n])*'" if strings else "")
    return re.sub(token, lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.S)


def matches(pattern, text):
    for number, line in enumerate(text.split("\n"), 1):
        for match in re.finditer(pattern, line):
            yield number, match


def layer_of(path):
    parts = path.split("/")
    return parts[1] if parts[0] == "src" and len(parts) > 2 else None


# ---- the rules: each yields (path, line, rule, what to do) ----


def rule_layers(root):
    """Imports point down."""
    for path in files(root, ["src"], (".c", ".h")):
        mine = layer_of(path)
        if mine not in LAYERS:
            yield path, 1, "layers", f"unknown layer; tools/lint.py knows {', '.join(LAYERS)}"
            continue
        for line, match in matches(r'^\s*#\s*include\s+"([^"]+)"', blank(read(root, path), strings=False)):
            target = match[1].split("/")[0]
            if match[1] == "lockstep.h" or target == mine or "/" not in match[1]:
                continue
            if target not in LAYERS:
                yield path, line, "layers", f'"{match[1]}" begins with no layer; use "layer/file.h"'
            elif mine in OUTSIDE and target != "base" and not (mine == "cli" and target == "server"):
                yield path, line, "layers", f"{mine} may include lockstep.h, base/ and its own folder only"
            elif LAYERS.index(target) > LAYERS.index(mine):
                yield path, line, "layers", f"{mine} lies below {target}; move the code or pass what it needs"


def functions(text):
    """(first line, lines, name) of each function; relies on clang-format's layout: only definitions touch column 0."""
    begin, header = None, ""
    for number, line in enumerate(blank(text).split("\n"), 1):
        if re.match(r"[A-Za-z_]", line):
            begin, header = number, ""
        header += line
        if line.startswith("}") and begin and re.search(r"\)[^;=]*\{", header):
            name = re.search(r"(\w+)\s*\(", header.split("{")[0])
            yield begin, number - begin + 1, name[1] if name else "?"
            begin = None
        elif line.startswith("}"):
            begin = None


def rule_size(root, verbose=False):
    for path in files(root, C_FOLDERS, (".c", ".h", ".cu", ".py")):
        text = read(root, path)
        limit = MAX_TEST_FILE if path.startswith("tests/") else MAX_FILE
        limit = MAX_PUBLIC_HEADER if path == "include/lockstep.h" else limit
        if text.count("\n") > limit:
            yield path, limit, "file-size", f"{text.count(chr(10))} lines, more than {limit}; split it"
        for line, n, name in [] if path.endswith(".py") else functions(text):
            if n > MAX_FUNCTION:
                yield path, line, "function-size", f"{name} has {n} lines, more than {MAX_FUNCTION}; split it"
            elif n > LONG_FUNCTION and verbose:
                print(f"{path}:{line}: note: {name} has {n} lines", file=sys.stderr)


def rule_calls(root):
    """The library never exits, aborts or prints, and reads the environment in one place."""
    for path in files(root, ["src"], (".c", ".h")):
        text = blank(read(root, path))
        if layer_of(path) != "cli":
            calls = r"\b(_?exit|_Exit|quick_exit|abort|v?printf|puts|putchar|perror)\s*\("
            for line, match in matches(calls, text):
                yield path, line, "library-calls", f"{match[1]}: return an ls_status, or log_line()"
            for line, match in matches(r"\b(stdout|stderr)\b", text):
                yield path, line, "library-calls", f"{match[1]} belongs to src/cli; use log_line()"
        if path != "src/base/options.c":
            for line, _ in matches(r"\b(secure_)?getenv\s*\(", text):
                yield path, line, "getenv", "only src/base/options.c reads the environment"


def rule_text(root):
    shells = (".c", ".h", ".cu", ".py", ".sh", "Makefile", "run", ".clang-tidy", ".clang-format")
    for path in files(root, ends=shells + (".md",)):
        text = read(root, path)
        for line, _ in matches(r"[ \t\r]+$", text):
            yield path, line, "blanks", "remove the blanks at the end of the line"
        if not path.endswith(".md"):
            for line, match in matches(rf"\b({WORDS})\b", text):
                yield path, line, "unfinished", f"{match[0]}: finish it, or write an issue"
            for line, match in matches(INEXACT, text):
                yield path, line, "exact-math", f"{match[0]} changes the bits of results; remove it"
        if path.endswith((".c", ".h", ".cu")):
            for line, _ in matches(r"\t", text):
                yield path, line, "tabs", "use blanks"


def rule_device_code(root):
    """.cu files hold device code only; launchers are C."""
    marks = r"<<<|\bcu(da|bla)?[A-Z]\w*\s*\(|__host__|\bmain\s*\(|#\s*include\s+<(std|cuda_runtime|vector|string|c?math)"
    for path in files(root, ["src", "tests"], (".cu",)):
        for line, match in matches(marks, blank(read(root, path))):
            yield path, line, "device-code", f"{match[0].strip()}: host code goes into a .c launcher"


def rule_prototypes(root):
    """Each prototype of a contract has a comment, before it in its block (lines between empty ones) or beside it."""
    for path in ("include/lockstep.h", "include/lockstep_hosts.h", "src/backend/ops.h"):
        if not os.path.exists(os.path.join(root, path)):
            continue
        text = read(root, path)
        lines, code = text.split("\n"), blank(text).split("\n")
        commented, number = False, 0
        while number < len(lines):
            begin = number
            if re.match(r"[A-Za-z_][\w\s*]*\b\w+\s*\(", code[number]) and not code[number].startswith("typedef"):
                while number + 1 < len(lines) and not re.search(r"[;{]", code[number]):
                    number += 1
                if ";" in code[number] and not commented and not re.search(r"/\*|//", "".join(lines[begin:number + 1])):
                    yield path, begin + 1, "prototype-comment", "say what it does: shapes, units, ownership, errors"
            commented = lines[number].strip() != "" and (commented or bool(re.search(r"\*/|//", lines[number])))
            number += 1


def rule_error_codes(root):
    path = "include/lockstep.h"
    tests = "".join(read(root, p) for p in files(root, ["tests"], (".c", ".h", ".py")))
    for line, match in matches(r"\bX\((\w+), -\d+,", read(root, path)):
        if not re.search(rf"\b{match[1]}\b", tests):
            yield path, line, "error-codes", f"no test expects {match[1]}; write one that produces it"


def rule_format(root):
    if not clang_format_fits():
        return
    paths = list(files(root, C_FOLDERS, (".c", ".h", ".cu")))
    done = subprocess.run(["clang-format", "--dry-run", "--Werror", *paths], cwd=root, capture_output=True, text=True)
    seen = set()
    for match in re.finditer(r"^(.+?):(\d+):\d+: error: code should be clang-formatted", done.stderr, re.M):
        if match[1] not in seen:
            seen.add(match[1])
            yield match[1], int(match[2]), "format", "run `make format`"
    if done.returncode and not seen:
        yield ".clang-format", 1, "format", f"clang-format failed: {done.stderr.strip()[:300]}"


def rule_shell(root):
    if not shutil.which("shellcheck"):
        print("lint: note: shellcheck not found, shell scripts not checked: run ./setup.sh", file=sys.stderr)
        return
    scripts = [p for p in files(root) if re.match(r"#!.*\b(ba|da)?sh\b", read(root, p)[:80])]
    done = subprocess.run(["shellcheck", "-f", "gcc", *scripts], cwd=root, capture_output=True, text=True)
    for match in re.finditer(r"^(.+?):(\d+):\d+: \w+: (.*)$", done.stdout, re.M):
        yield match[1], int(match[2]), "shellcheck", match[3]


# NVTX's header keeps the functions of a process's profiler in them.
FOREIGN_GLOBALS = {"InitializeInjectionNvtx2_fnptr", "nvtxGlobals_v3"}


def rule_globals(root, library):
    """No mutable statics: R ranks live in one process. Constant tables lie in .rodata and .data.rel.ro."""
    listing = subprocess.run(["nm", "--format=sysv", library], capture_output=True, text=True, check=True).stdout
    member = "?"
    for line in listing.split("\n"):
        if header := re.search(r"\[(\S+)\.o\]:", line):
            member = header[1] + ".c"
        cells = [cell.strip() for cell in line.split("|")]
        section = cells[-1]
        if len(cells) == 7 and (re.match(r"\.t?(data|bss)\b(?!\.rel\.ro)", section) or section == "*COM*"):
            path = next((p for p in files(root, ["src"], (".c",)) if os.path.basename(p) == member), member)
            name = cells[0].split(".")[0]
            if name in FOREIGN_GLOBALS:
                continue
            at = next((n for n, _ in matches(rf"\b{name}\b", blank(read(root, path)))), 1) if path != member else 1
            yield path, at, "globals", f"{name} is mutable and static; make it const or a field of its owner"


@functools.cache
def clang_format_fits():
    if not shutil.which("clang-format"):
        print("lint: note: clang-format not found, format not checked: run ./setup.sh", file=sys.stderr)
        return False
    version = subprocess.run(["clang-format", "--version"], capture_output=True, text=True).stdout
    if f"version {CLANG_FORMAT}." not in version:
        print(f"lint: note: format is clang-format {CLANG_FORMAT}'s; not checked by {version.strip()}", file=sys.stderr)
        return False
    return True


def check(root, library=None, verbose=False):
    rules = [rule_layers, rule_calls, rule_text, rule_device_code, rule_prototypes, rule_error_codes, rule_format, rule_shell]
    found = [breach for rule in rules for breach in rule(root)] + list(rule_size(root, verbose))
    return found + (list(rule_globals(root, library)) if library else [])


# ---- self-test ----

GOOD = {
    "include/lockstep.h": "/* Adds. */\nint add(int a, int b);\nint sub(int a, int b);\n\n"
    "int neg(int a); /* negates */\n\n#define LS_STATUS_MAP(X) X(LS_EFIRST, -1, \"first\")\n",
    "src/backend/ops.h": "typedef int (*op)(int);\nstruct table {\n    int (*run)(int);\n};\n",
    "src/base/options.c": "const char *read(void) {\n    return getenv(\"exit(1)\");\n}\n",
    "src/backend/table.c": "static int one(void) {\n    return 1;\n}\n\nint (*const table[])(void) = {one};\n",
    "src/engine/good.c": '#include "base/error.h"\n#include "lockstep.h"\n'
    "/* does not abort(): */\nstatic const char *const name[] = {\"a\", \"b\"};\n\n"
    "const char *name_of(int i) {\n    return name[i];\n}\n",
    "src/cli/good.c": '#include "server/http.h"\nvoid say(void) {\n    puts("x");\n}\n',
    "src/backend/cuda/kern/good.cu": "/* launched by <<<1, 1>>> in spirit */\nextern \"C\" __global__ void f(void) {}\n",
    "tests/unit/test_good.c": "/* LS_EFIRST */\n",
    "good.sh": '#!/bin/sh\necho "$1"\n',
}
BAD = {  # path: (rule that must fire there, text)
    "src/base/up.c": ("layers", '#include "engine/step.h"\n'),
    "src/cli/inside.c": ("layers", '#include "engine/step.h"\n'),
    "src/server/inside.c": ("layers", '#include "cli/cmd.h"\n'),
    "src/odd/new.c": ("layers", "\n"),
    "src/base/long.c": ("file-size", "\n" * (MAX_FILE + 1)),
    "tests/unit/long.c": ("file-size", "\n" * (MAX_TEST_FILE + 1)),
    "src/base/big.c": ("function-size", "int f(int a,\n      int b) {\n" + "    a += b;\n" * MAX_FUNCTION + "}\n"),
    "src/base/quits.c": ("library-calls", "void f(void) {\n    exit(1);\n}\n"),
    "src/base/prints.c": ("library-calls", 'void f(void) {\n    fprintf(stderr, "x");\n}\n'),
    "src/engine/env.c": ("getenv", 'char *f(void) {\n    return getenv("X");\n}\n'),
    "src/base/later.c": ("unfinished", "/* TO" "DO */\n"),
    "src/base/tab.c": ("tabs", "/*\t*/\n"),
    "src/base/end.c": ("blanks", "/*  \n*/\n"),
    "Makefile": ("exact-math", "CFLAGS = -O" "fast\n"),
    "src/backend/cuda/kern/host.cu": ("device-code", "void f(void) {\n    k<<<1, 1>>>();\n}\n"),
    "src/backend/cuda/kern/api.cu": ("device-code", "void f(void) {\n    cudaMalloc(0, 0);\n}\n"),
    "src/backend/ops.h": ("prototype-comment", "/* Why. */\n\nint f(int a,\n      int b);\n"),
    "include/lockstep.h": ("error-codes", '#define LS_STATUS_MAP(X) X(LS_ESECOND, -2, "second")\n'),
    "src/base/ugly.c": ("format", "int   f( void );\n"),
    "bad.sh": ("shellcheck", "#!/bin/sh\necho $1\n"),
    "src/base/state.c": ("globals", "static int n;\nint next(void) {\n    return n++;\n}\n"),
    "src/base/local.c": ("globals", "int *next(void) {\n    static int n = 1;\n    return &n;\n}\n"),
}


def write_tree(root, tree):
    for path, text in tree.items():
        os.makedirs(os.path.join(root, os.path.dirname(path)), exist_ok=True)
        with open(os.path.join(root, path), "w", encoding="utf-8") as file:
            file.write(text)


def archive(root, paths):
    """Objects of `paths` in one archive, as position-independent as the library's own."""
    library = os.path.join(root, "lib.a")
    for path in paths:
        subprocess.run(["cc", "-w", "-c", path, "-o", os.path.basename(path)[:-2] + ".o"], cwd=root, check=True)
    subprocess.run(["ar", "qcs", library] + [os.path.basename(p)[:-2] + ".o" for p in paths], cwd=root, check=True)
    return library


def self_test():
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    tools = {"format": clang_format_fits(), "shellcheck": shutil.which("shellcheck")}
    with tempfile.TemporaryDirectory() as good, tempfile.TemporaryDirectory() as bad:
        for root, tree in (good, GOOD), (bad, {path: text for path, (_, text) in BAD.items()}):
            write_tree(root, tree)
            shutil.copy(os.path.join(here, ".clang-format"), root)
        false_alarms = check(good, archive(good, ["src/backend/table.c"]))
        found = {(path, rule) for path, _, rule, _ in check(bad, archive(bad, ["src/base/state.c", "src/base/local.c"]))}
    missed = [(path, rule) for path, (rule, _) in BAD.items() if (path, rule) not in found and tools.get(rule, True)]
    for path, line, rule, what in false_alarms:
        print(f"lint self-test: {rule} fires on good code: {path}:{line}: {what}")
    for path, rule in missed:
        print(f"lint self-test: {rule} misses {path}")
    print(f"lint self-test: {len(BAD) - len(missed)} of {len(BAD)} made-up breaches found, {len(false_alarms)} false alarms")
    return 1 if missed or false_alarms else 0


def main():
    parser = argparse.ArgumentParser(usage=__doc__.split("\n\n")[1][len("usage: "):])
    parser.add_argument("--library")
    parser.add_argument("-v", "--verbose", action="store_true")
    parser.add_argument("--self-test", action="store_true")
    parser.add_argument("--format", action="store_true")
    args = parser.parse_args()
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if args.self_test:
        return self_test()
    if args.format:
        paths = list(files(root, C_FOLDERS, (".c", ".h", ".cu")))
        return subprocess.run(["clang-format", "-i", *paths], cwd=root).returncode if clang_format_fits() else 1
    found = check(root, args.library, args.verbose)
    for path, line, rule, what in sorted(found):
        print(f"{path}:{line}: {rule}: {what}")
    print(f"lint: {len(found)} to mend" if found else "lint: clean")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
