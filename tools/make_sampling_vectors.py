#!/usr/bin/env python3
"""tests/golden/sampling.json: the probabilities that transformers' logits processors leave, for tests/unit/test_sampling_vectors.c.

    pip install -r tools/requirements.txt
    python3 tools/make_sampling_vectors.py

Each case: logits of 64 tokens (token i is written as byte 32 + i), prompt and answer so far, parameters by the names of
include/lockstep.h, and the probability of every token after all processors, in transformers' order. Presence and frequency
penalty are no transformers processors: they are OpenAI's formula, where the manual puts them (after the repetition penalty).
"""
import json
import os

import torch
from transformers.generation import logits_process as lp

V, FIRST_BYTE, SEED = 64, 32, 20261122
OUT = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tests", "golden", "sampling.json")


def ids(text):
    return [ord(c) - FIRST_BYTE for c in text]


def probabilities(case):
    prompt, answer = case["prompt"], case["answer"]
    input_ids = torch.tensor([prompt + answer])
    scores = torch.tensor([case["logits"]], dtype=torch.float32)
    processors = []
    if case.get("logit_bias"):
        processors.append(lp.SequenceBiasLogitsProcessor([[[int(i)], float(b)] for i, b in case["logit_bias"]]))
    if "repetition_penalty" in case:
        processors.append(lp.RepetitionPenaltyLogitsProcessor(case["repetition_penalty"]))
    if "presence_penalty" in case or "frequency_penalty" in case:
        def openai(_, scores):
            for token in set(answer):
                scores[0, token] -= case.get("presence_penalty", 0) + case.get("frequency_penalty", 0) * answer.count(token)
            return scores
        processors.append(openai)
    if case.get("bad_words"):
        words = [ids(prefix + w) for w in case["bad_words"] for prefix in ("", " ")]
        processors.append(lp.NoBadWordsLogitsProcessor(words))
    if "min_tokens" in case:
        processors.append(lp.MinNewTokensLengthLogitsProcessor(len(prompt), case["min_tokens"], case["stop_tokens"]))
    if "allowed_tokens" in case:
        processors.append(lp.PrefixConstrainedLogitsProcessor(lambda _, __: case["allowed_tokens"], 1))
    if "temperature" in case:
        processors.append(lp.TemperatureLogitsWarper(case["temperature"]))
    if "top_k" in case:
        processors.append(lp.TopKLogitsWarper(case["top_k"]))
    if "top_p" in case:
        processors.append(lp.TopPLogitsWarper(case["top_p"]))
    if "min_p" in case:
        processors.append(lp.MinPLogitsWarper(case["min_p"]))
    for process in processors:
        scores = process(input_ids, scores)
    return torch.softmax(scores.double(), -1)[0].tolist()


CASES = [
    ("plain", {}),
    ("temperature", {"temperature": 0.6}),
    ("hot", {"temperature": 2.5}),
    ("top-k", {"top_k": 7}),
    ("top-p", {"top_p": 0.8}),
    ("min-p", {"min_p": 0.1}),
    ("temperature, top-k, top-p", {"temperature": 0.7, "top_k": 20, "top_p": 0.9}),
    ("temperature, top-p, min-p", {"temperature": 1.4, "top_p": 0.95, "min_p": 0.15}),
    ("all filters", {"temperature": 1.2, "top_k": 12, "top_p": 0.85, "min_p": 0.08}),
    ("min-p after top-k", {"top_k": 30, "min_p": 0.02}),
    ("repetition", {"repetition_penalty": 1.7}),
    ("repetition below 1", {"repetition_penalty": 0.6, "top_k": 15}),
    ("presence", {"presence_penalty": 1.5}),
    ("frequency", {"frequency_penalty": 0.8, "top_p": 0.9}),
    ("all penalties", {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.4, "temperature": 0.8}),
    ("bias", {"logit_bias": [[3, 2.5], [9, -1.5], [20, 4.0]], "top_k": 10}),
    ("bias before repetition", {"logit_bias": [[1, -3.0], [2, 3.0]], "repetition_penalty": 2.0}),
    ("bad word", {"bad_words": ["#", "%&"], "temperature": 0.9}),
    ("bad word that is due", {"bad_words": ["()*"], "logit_bias": [[10, 5.0]]}),
    ("min tokens", {"min_tokens": 9, "stop_tokens": [4, 11], "logit_bias": [[4, 6.0]]}),
    ("min tokens reached", {"min_tokens": 4, "stop_tokens": [4, 11], "logit_bias": [[4, 2.0]]}),
    ("allowed", {"allowed_tokens": [2, 3, 5, 8, 13, 21, 34, 55], "temperature": 1.5}),
    ("allowed, top-p", {"allowed_tokens": list(range(0, 64, 3)), "top_p": 0.7, "repetition_penalty": 1.2}),
]


def main():
    torch.manual_seed(SEED)
    cases = []
    for name, params in CASES:
        case = {"name": name, "logits": (torch.randn(V) * 1.5).tolist(), "prompt": ids("!\"#$ 0123"), "answer": ids("()(()"), **params}
        case["probabilities"] = probabilities(case)
        kept = [p for p in case["probabilities"] if p > 0]
        assert len(kept) >= 3 and abs(sum(kept) - 1) < 1e-9, name
        case["probabilities"] = [round(p, 9) for p in case["probabilities"]]
        cases.append(case)
    with open(OUT, "w", encoding="utf-8") as file:
        file.write("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
    print(f"{OUT}: {len(cases)} cases, {os.path.getsize(OUT)} bytes")


if __name__ == "__main__":
    main()
