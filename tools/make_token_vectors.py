#!/usr/bin/env python3
"""Writes tests/golden/tokens_{demo,qwen3}.json: what Hugging Face `tokenizers` makes of a few hundred strings.

    python tools/make_token_vectors.py [--data ../shared/data]

Needs the package `tokenizers`. The strings are the same for both tokenizers and for every run (fixed seed). Each file:
    encode: [text, ids]            special tokens in the text become their ids
    plain:  [text, ids]            special tokens in the text stay text
    decode: [ids, text, skipped]   `skipped` leaves special tokens out; null where it is the same text
Random text keeps to characters of Unicode 14, the version that PCRE2 10.42 and utf8proc 2.8 know.
"""
import argparse
import json
import os
import random
import unicodedata

import tokenizers

SCRIPTS = [
    (0x20, 0x7E), (0x20, 0x7E), (0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF),
    (0x590, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F), (0xE00, 0xE7F), (0x1100, 0x11FF), (0x1F00, 0x1FFF),
    (0x2000, 0x206F), (0x2100, 0x214F), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFAFF),
    (0xFB00, 0xFB4F), (0x1D100, 0x1D1FF), (0x1F300, 0x1F64F), (0x20000, 0x2A6DF), (0xE0100, 0xE01EF),
]
WHITE = " \t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u180e\u2003\u2028\u2029\u202f\u205f\u3000\u200b\ufeff"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

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


def vectors(tokenizer, strings, rng):
    encode, plain, decode = [], [], []
    for text in strings:
        encode.append([text, tokenizer.encode(text).ids])
        if "<" in text:
            tokenizer.encode_special_tokens = True
            plain.append([text, tokenizer.encode(text).ids])
            tokenizer.encode_special_tokens = False
    special = [tokenizer.token_to_id(t) for t in SPECIAL]
    cut = [i for i in range(tokenizer.get_vocab_size()) if "\ufffd" in tokenizer.decode([i])]  # parts of characters
    multibyte = [ids for text, ids in encode if ids and not text.isascii()]
    for i in range(160):
        if i % 4 == 0:  # any ids, and some that do not exist
            ids = [rng.randrange(tokenizer.get_vocab_size() + 100) for _ in range(rng.randint(1, 8))]
        elif i % 4 == 1:  # parts of characters in any order
            ids = [rng.choice(cut + special) for _ in range(rng.randint(1, 12))]
        else:  # emoji and CJK cut in two, special tokens within
            ids = list(rng.choice(multibyte))[:20]
            for _ in range(rng.randint(1, 3)):
                at = rng.randrange(len(ids) + 1)
                ids[at:at + rng.randint(0, 1)] = rng.choices(special + cut, k=rng.randint(0, 1))
        text = tokenizer.decode(ids, skip_special_tokens=False)
        skipped = tokenizer.decode(ids, skip_special_tokens=True)
        decode.append([ids, text, None if skipped == text else skipped])
    return {"encode": encode, "plain": plain, "decode": decode}


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
    for name, path in (("demo", "demo/tokenizer.json"), ("qwen3", f"{args.data}/tokenizers/Qwen3/tokenizer.json")):
        tokenizer = tokenizers.Tokenizer.from_file(path)
        write(f"tests/golden/tokens_{name}.json", name, vectors(tokenizer, strings, random.Random(2)))


if __name__ == "__main__":
    main()
