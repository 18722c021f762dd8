#!/usr/bin/env python3
"""The perplexity of a text by transformers: the referee of `lockstep perplexity`.

usage: tools/perplexity_reference.py MODEL_FOLDER TEXT_FILE [--window N] [--dtype float32|bfloat16|float16]

As in transformers' "Perplexity of fixed-length models" with a stride of the window's length: the text is tokenised as a
whole, with what the tokenizer adds; windows do not overlap; the first token of each is not scored. Log-softmax in double
over the logits. Prints one JSON object, as lockstep perplexity --json does.
"""
import argparse
import json
import math

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--window", type=int)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype))
    model.eval()
    with open(args.text, encoding="utf-8", newline="") as file:
        ids = tokenizer(file.read(), return_tensors="pt", verbose=False).input_ids
    window = args.window or model.config.max_position_embeddings
    nll, scored, windows = 0.0, 0, 0
    for begin in range(0, ids.size(1) - 1, window):
        part = ids[:, begin : begin + window]
        with torch.no_grad():
            logits = model(part).logits[0, :-1].double()
        nll -= torch.log_softmax(logits, -1).gather(1, part[0, 1:, None]).sum().item()
        scored += part.size(1) - 1
        windows += 1
    print(json.dumps({"perplexity": math.exp(nll / scored), "nll": nll / scored, "tokens": ids.size(1),
                      "scored_tokens": scored, "windows": windows, "window_tokens": window}))


if __name__ == "__main__":
    main()
