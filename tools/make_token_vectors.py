#!/usr/bin/env python3
"""Writes tests/golden/tokens_*.json: what Hugging Face `tokenizers` makes of many strings.

    python tools/make_token_vectors.py [--data ../shared/data] [--only name]

Needs the package `tokenizers`. The strings are the same for all tokenizers and for every run (fixed seed). Small sets,
tokens_<name>.json, for tokenizers in this repository and for Qwen3:
    encode: [text, ids, spans]     defaults: special tokens in the text become their ids, the post-processor adds its own
    plain:  [text, ids]            special tokens in the text stay text, none are added
    decode: [ids, text, skipped]   `skipped` leaves special tokens out; null where it is the same text
Spans are byte offsets, as one list [start, length, start, length ...], each start counted from the end before it.

Large sets, tokens_large.json: for each tokenizer 10,000 strings that a small generator makes here and in
tests/unit/token_strings.c (keep in step), and one hash for each 100 of them, over ids with and without special tokens,
spans, and the decoded text of both.

Random text keeps to characters of Unicode 14, the version that PCRE2 10.42 and utf8proc 2.8 know.
"""
import argparse
import json
import os
import random
import re
import struct
import unicodedata

import tokenizers

SCRIPTS = [
    (0x20, 0x7E), (0x20, 0x7E), (0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF),
    (0x590, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x1100, 0x11FF), (0x1F00, 0x1FFF),
    (0x2000, 0x206F), (0x2100, 0x214F), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFAFF),
    (0xFB00, 0xFB4F), (0x1D100, 0x1D1FF), (0x1F300, 0x1F64F), (0x20000, 0x2A6DF), (0xE0100, 0xE01EF),
]
WHITE = " \t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u180e\u2003\u2028\u2029\u202f\u205f\u3000\u200b\ufeff"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>", "[INST]", "<|eot_id|>"]

WRITTEN = [
    "", " ", "  ", "a", "Hello, world!", "Hello world, it's me. I'll see what they've said; we're sure she'd agree.",
    "HELLO WORLD, IT'S ME. I'LL SEE WHAT THEY'VE SAID; WE'RE SURE SHE'D AGREE.", "'s't're've'm'll'd'S'T",
    "'\u017f \u017fs",
    "3.14159265358979 1,000,000 0x1F 1e-9 2024-05-17T08:30:00Z",
    "\u0661\u0662\u0663 \u00b2\u00b3\u00b9 \u2460\u2461 \u2167 \u00bd",
    "def f(x):\n    return [i ** 2 for i in range(x) if i % 2 == 0]  # squares\n",
    "\tif (a && b) {\n\t\treturn a->b[0];\n\t}\n",
    "#include <stdio.h>\r\nint main(void) { puts(\"hi\"); }\r\n\r\n\r\n", "a\n\nb\n \nc \n\n  d\r\n\r\ne",
    "   leading", "trailing   ",
    " \n \n ", "\n\n\n", "\r\r\r", "\t\t\t", "a  b   c    d", "x\u00a0y\u2003z\u3000w\u180ev\u200bu", "...!!!???;;;",
    "a.b,c;d:e!f?g",
    "https://example.org/path?query=1&other=%20#frag", "user.name+tag@example.co.uk", "C++ C# F# .NET Node.js",
    "caf\u00e9 cafe\u0301 na\u00efve nai\u0308ve", "A\u030a \u212b \u00c5", "\u1e9b\u0323",
    "q\u0307\u0323 q\u0323\u0307", "\u0344 \u0374 \u2126 \uf900",
    "e" + "\u0301\u0323\u0316" * 8, "\u0301 starts with a mark", "\u1100\u1161\u11a8 \uac01 \uac00\u11a8",
    "\u0915\u093c \u0958", "\u05d0\u05b7\u05bc \ufb2e",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff01",
    "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c \u30ab\u30bf\u30ab\u30ca \u304b\u3099 \u30cf\u309a",
    "\uc548\ub155\ud558\uc138\uc694 \uc138\uacc4",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440! \u0438\u0306 \u0439",
    "\u0393\u03b5\u03b9\u03ac \u03c3\u03bf\u03c5 \u039a\u03cc\u03c3\u03bc\u03b5",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 \u0639\u0644\u064e\u0651",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01", "\u1820\u180e\u1820",
    "\U0001f600\U0001f603 \U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "\U0001f1e9\U0001f1ea \U0001f44d\U0001f3fd \u2764\ufe0f",
    "\U0002a6b2 \U00020000 \U0001d54f \U0001d15e", "\ud7ff\ue000\ufffd\uffff\U0010ffff", "nul\x00in\x01the\x7fmiddle",
    "a" * 47, "a" * 48, "a" * 49, "a" * 300, "ab" * 200, "the" * 100, "supercalifragilisticexpialidocious" * 6,
    "=" * 120,
    "-" * 79 + "\n", " " * 100, " " * 100 + "x", "\n" * 60, "0" * 70, "\u00e9" * 60, "\u4e2d" * 60, "\U0001f600" * 30,
    "e\u0301" * 40,
    "<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\n", "a<|endoftext|>b", "<|endoftext|>",
    "<|endoftext|><|endoftext|>",
    "<|im_start", "<|im_start|", "<|<|im_start|>|>", " <|im_end|> ", "e<|im_end|>\u0301", "<|IM_END|>",
    "<think>\nhm\n</think>\n\nyes",
    "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>", "<think>a</think>b<think",
    "<|im\u005fstart|>", "\u00e9<|im_end|>\u00e9",
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the sun.",
    "\"Come in,\" said Holmes. \u201cIt is quite a three-pipe problem\u2014and"
    " I beg that you won\u2019t speak to me for fifty minutes.\u201d",
]


def assigned(c):
    return unicodedata.category(chr(c)) not in ("Cn", "Cs")


def random_strings(rng):
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    for _ in range(50):  # one script or two at a time
        ranges = [rng.choice(SCRIPTS) for _ in range(rng.randint(1, 2))]
        points = [c for low, high in ranges for c in range(low, high + 1) if assigned(c)]
        yield "".join(chr(rng.choice(points)) for _ in range(rng.randint(1, 24)))
    for _ in range(40):  # all at once, with white space
        parts = []
        for _ in range(rng.randint(3, 20)):
            low, high = rng.choice(SCRIPTS)
            c = rng.randint(low, high)
            parts.append(chr(c) if assigned(c) and rng.random() < 0.7 else rng.choice(WHITE))
        yield "".join(parts)
    for _ in range(30):  # white space in all its forms
        yield "".join(rng.choice(WHITE + "a1.") for _ in range(rng.randint(1, 16)))
    for _ in range(20):  # long words: the merge queue
        yield "".join(rng.choice(letters) for _ in range(rng.randint(50, 120)))
    for _ in range(30):  # special tokens in between, whole and broken
        parts = SPECIAL + ["<|", "|>", "<think>", "hello", " ", "\n", "\u00e9", "\u4f60"]
        yield "".join(rng.choice(parts) for _ in range(rng.randint(2, 8)))
    for _ in range(20):  # marks in any order
        words = []
        for _ in range(4):
            marks = [chr(rng.randint(0x300, 0x345)) for _ in range(rng.randint(0, 6))]
            words.append(rng.choice("aeo\u00e9\u03b1") + "".join(marks))
        yield "".join(words)


def byte_places(text):
    """Byte offset of each character, and of the end."""
    places = [0]
    for c in text:
        places.append(places[-1] + len(c.encode()))
    return places


def byte_spans(text, encoding):
    places = byte_places(text)
    return [(places[start], places[end]) for start, end in encoding.offsets]


def packed(spans):
    flat, last = [], 0
    for start, end in spans:
        flat += [start - last, end - start]
        last = end
    return flat


def encode_plain(tokenizer, text):
    tokenizer.encode_special_tokens = True
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    tokenizer.encode_special_tokens = False
    return ids


def id_lists(tokenizer, rows, rng):
    """Lists to decode: any ids, parts of characters in any order, and encodings that were tampered with."""
    size = tokenizer.get_vocab_size()
    special = [i for i, t in tokenizer.get_added_tokens_decoder().items() if t.special]
    cut = [i for i in range(size) if "\ufffd" in tokenizer.decode([i]) or (tokenizer.id_to_token(i) or "")[:3] == "<0x"]
    cut = cut or special
    multibyte = [ids for text, ids, _ in rows if ids and not text.isascii()]
    for i in range(160):
        if i % 4 == 0:
            yield [rng.randrange(size + 100) for _ in range(rng.randint(1, 8))]
        elif i % 4 == 1:
            yield [rng.choice(cut + special) for _ in range(rng.randint(1, 12))]
        else:
            ids = list(rng.choice(multibyte))[:20]
            for _ in range(rng.randint(1, 3)):
                at = rng.randrange(len(ids) + 1)
                ids[at:at + rng.randint(0, 1)] = rng.choices(special + cut, k=rng.randint(0, 1))
            yield ids


def vectors(tokenizer, strings, rng):
    encode, plain, decode = [], [], []
    for text in strings:
        encoding = tokenizer.encode(text)
        encode.append([text, encoding.ids, packed(byte_spans(text, encoding))])
        if "<" in text:
            plain.append([text, encode_plain(tokenizer, text)])
    for ids in id_lists(tokenizer, encode, rng):
        text = tokenizer.decode(ids, skip_special_tokens=False)
        skipped = tokenizer.decode(ids, skip_special_tokens=True)
        decode.append([ids, text, None if skipped == text else skipped])
    return {"encode": encode, "plain": plain, "decode": decode}


# ---- Large sets: the generator of tests/unit/token_strings.c, with its tables read from there ----

MASK = (1 << 64) - 1


def table(source, name):
    return re.search(name + r"\[\](?:\[2\])? = \{(.*?)\n?\};", source, re.S)[1]


def c_strings(body):
    text = re.sub(r"\\x([0-9A-F]{2})", r"\\u00\1", body)
    return [json.loads(f'"{s}"') if "\\U" not in s else s.encode("ascii").decode("unicode_escape")
            for s in re.findall(r'"((?:[^"\\]|\\.)*)"', text)]


class Strings:
    def __init__(self):
        with open("tests/unit/token_strings.c", encoding="utf-8") as f:
            source = f.read()
        pairs = re.findall(r"\{(0x[0-9A-F]+), (0x[0-9A-F]+)\}", table(source, "scripts"))
        self.scripts = [(int(first, 16), int(last, 16)) for first, last in pairs]
        self.words, self.spaces = c_strings(table(source, "words")), c_strings(table(source, "spaces"))
        self.state = 0

    def below(self, n):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK
        z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK
        return ((z ^ z >> 31) >> 32) % n

    def characters(self, script, times):
        first, last = self.scripts[script]
        return chr(first + self.below(last - first + 1)) * times

    def string(self, i):
        self.state = (i * 1000003 + 12345) & MASK
        parts = []
        for _ in range(1 + self.below(8)):
            kind, script = self.below(8), self.below(len(self.scripts))
            if kind < 3:
                parts.append(self.words[self.below(len(self.words))])
            elif kind == 3:
                parts.append(self.spaces[self.below(len(self.spaces))])
            elif kind == 4:
                times = 1 + self.below(90)
                parts.append(self.characters(script, times))
            else:
                for _ in range(1 + self.below(16)):
                    parts.append(self.characters(self.below(len(self.scripts)) if kind == 5 else script, 1))
        return "".join(parts)


def fnv(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 & MASK
    return value


def words32(values):
    return struct.pack(f"<{len(values)}I", *values)


def large(tokenizer, n_strings=10000, per_hash=100):
    strings, hashes, data = Strings(), [], bytearray()
    for i in range(n_strings):
        text = strings.string(i)
        encoding, plain = tokenizer.encode(text), encode_plain(tokenizer, text)
        data += words32(encoding.ids) + words32([x for span in byte_spans(text, encoding) for x in span])
        data += words32(plain)
        data += tokenizer.decode(encoding.ids, skip_special_tokens=False).encode()
        data += tokenizer.decode(plain[::-1], skip_special_tokens=True).encode()
        if (i + 1) % per_hash == 0:
            hashes.append(f"{fnv(data):016x}")
            data.clear()
    return hashes


def write(path, name, data):
    with open(path, "w", encoding="ascii") as f:
        head = {"tokenizer": name, "made_with": f"tokenizers {tokenizers.__version__}"}
        f.write("{" + json.dumps(head)[1:-1])
        for key, rows in data.items():
            body = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
            f.write(f',\n"{key}": [\n{body}\n]')
        f.write("}\n")
    print(f"{path}: {os.path.getsize(path)} bytes, " + ", ".join(f"{len(rows)} {key}" for key, rows in data.items()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data", help="the folder with tokenizers/Qwen3/tokenizer.json")
    args = parser.parse_args()
    strings = list(dict.fromkeys(WRITTEN + list(random_strings(random.Random(1)))))
    own = [("demo", "demo/tokenizer.json")]
    own += [(name, f"tests/golden/tokenizer_{name}.json") for name in ("llama2", "metaspace", "llama3", "odd")]
    shared = f"{args.data}/tokenizers"
    for name, path in own + [("qwen3", f"{shared}/Qwen3/tokenizer.json")]:
        tokenizer = tokenizers.Tokenizer.from_file(path)
        rows = strings if name in ("demo", "qwen3") else strings[::3]
        write(f"tests/golden/tokens_{name}.json", name, vectors(tokenizer, rows, random.Random(2)))
    hashes = {}
    for folder in ("gpt2", "Qwen3", "Mistral-7B-v0.1", "Mistral-7B-Instruct-v0.2", "Mistral-7B-Instruct-v0.3"):
        own.append((folder, f"{shared}/{folder}/tokenizer.json"))
    for name, path in own:
        hashes[path.replace(args.data, "../shared/data")] = large(tokenizers.Tokenizer.from_file(path))
        print(path)
    write("tests/golden/tokens_large.json", "all", hashes)


if __name__ == "__main__":
    main()
