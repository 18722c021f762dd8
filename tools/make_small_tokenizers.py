#!/usr/bin/env python3
"""Writes tests/golden/tokenizer_*.json: small tokenizers trained by Hugging Face `tokenizers`, one for each family.

    python tools/make_small_tokenizers.py [--data ../shared/data]

Needs the package `tokenizers`. The text is the head of a book and some other scripts:
    tokenizer_llama2.json    SentencePiece-style: Prepend and Replace as normalizers, byte fallback, fused unknowns
    tokenizer_metaspace.json SentencePiece-style: Metaspace as pre-tokenizer (first, not split), byte fallback
    tokenizer_llama3.json    byte-level, Llama-3's pattern, ignore_merges, template
    tokenizer_odd.json       what the others lack: NFKC, Lowercase, Strip, regex Replace, Digits, Split that removes, an
                             unknown token, added tokens with every flag, decoder Metaspace
"""
import argparse
import json

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

OTHER = "Gr\u00f6\u00dfe na\u00efve caf\u00e9 \u4f60\u597d\u4e16\u754c \u3053\u3093\u306b\u3061\u306f \u041f\u0440\u0438\u0432\u0435\u0442 " \
    "def f(x):\n    return [i ** 2 for i in range(x)]\n"
LLAMA3 = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+" \
    "|\\s+(?!\\S)|\\s+"
MARK = "\u2581"


def train(text, special, byte_level):
    tokenizer = Tokenizer(models.BPE(unk_token=None if byte_level else "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False) if byte_level else \
        pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=620, special_tokens=special, show_progress=False, limit_alphabet=256 if byte_level else 80,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()) if byte_level else [])
    tokenizer.train_from_iterator(text.split("\n"), trainer)
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
    return data


def metaspace(scheme, split):
    return {"type": "Metaspace", "replacement": MARK, "prepend_scheme": scheme, "split": split}


def template(token, id):
    single = [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": single,
            "pair": single + [{"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}}}


def added(data, content, **flags):
    known = data["model"]["vocab"]
    fresh = len(known) + sum(t["content"] not in known for t in data["added_tokens"])
    data["added_tokens"].append({"id": known.get(content, fresh), "content": content, "single_word": False,
                                 "lstrip": False, "rstrip": False, "normalized": False, "special": True} | flags)


def sentence_piece(text):
    data = train(text, ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)], False)
    data["model"].update(byte_fallback=True, fuse_unk=True)
    data["post_processor"] = template("<s>", 1)
    data["decoder"] = {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": MARK}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    return data


def llama2(text):
    data = sentence_piece(text)
    data["pre_tokenizer"] = None
    data["normalizer"] = {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": MARK}, {"type": "Replace", "pattern": {"String": " "}, "content": MARK}]}
    data["model"]["merges"] = [" ".join(pair) for pair in data["model"]["merges"]]  # the older spelling
    return data


def with_metaspace(text):
    data = sentence_piece(text)
    data["pre_tokenizer"] = metaspace("first", False)
    for content in ("[INST]", "[/INST]"):
        added(data, content)
    return data


def llama3(text):
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"]
    data = train(text, special, True)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    data["model"]["ignore_merges"] = True
    data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False}, byte_level]}
    data["post_processor"] = {"type": "Sequence", "processors": [byte_level, template(special[0], 0)]}
    data["decoder"] = byte_level
    return data


def odd(text):
    data = train(text, ["<unk>", "<s>", "</s>"], False)
    data["normalizer"] = {"type": "Sequence", "normalizers": [
        {"type": "NFKC"}, {"type": "Strip", "strip_left": True, "strip_right": True}, {"type": "Lowercase"},
        {"type": "Replace", "pattern": {"Regex": "[\\n\\t]+| {3,}"}, "content": " "}]}
    data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"String": "#"}, "behavior": "Removed", "invert": False},
        {"type": "Split", "pattern": {"Regex": "[.,;]"}, "behavior": "MergedWithPrevious", "invert": False},
        {"type": "Digits", "individual_digits": True}, metaspace("always", True)]}
    data["decoder"] = metaspace("always", True)
    data["post_processor"] = {"type": "BertProcessing", "sep": ["</s>", 2], "cls": ["<s>", 1]}
    added(data, "<left>", lstrip=True)
    added(data, "<right>", rstrip=True, special=False)
    added(data, "word", single_word=True, special=False)
    added(data, "The END", normalized=True, special=False)
    added(data, "\u2167", normalized=True)
    return data


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data", help="the folder with text/sherlock.txt")
    args = parser.parse_args()
    with open(f"{args.data}/text/sherlock.txt", encoding="utf-8") as f:
        text = f.read()[:150000] + "\n" + OTHER * 40
    for name, make in (("llama2", llama2), ("metaspace", with_metaspace), ("llama3", llama3), ("odd", odd)):
        path = f"tests/golden/tokenizer_{name}.json"
        with open(path, "w", encoding="ascii") as f:
            json.dump(make(text), f, separators=(",", ":"))
            f.write("\n")
        Tokenizer.from_file(path)
        print(path)


if __name__ == "__main__":
    main()
