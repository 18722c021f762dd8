"""Writes tests/golden/rope.json: rotary frequencies as transformers computes them.

Run from the repository root with the pinned environment of tools/requirements.txt:
    python tools/make_rope_golden.py
Each case is a config.json (a whole one, so that the test reads it as it would a model's) and what transformers makes of
it: inv_freq as f32 printed with 9 significant digits (exact), and the factor on cos and sin.
"""
import json

import torch
from transformers import AutoConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

BASE = {
    "model_type": "llama", "hidden_size": 512, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 64,
}

CASES = {
    "default": {"head_dim": 128, "rope_theta": 1000000.0},
    "default_d80_no_theta": {"head_dim": 80},
    "default_new_form": {"head_dim": 96, "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
    "linear": {"head_dim": 64, "rope_theta": 10000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    "linear_third": {"head_dim": 48, "rope_scaling": {"rope_type": "linear", "factor": 3.0}},
    "llama3": {"head_dim": 128, "rope_theta": 500000.0, "max_position_embeddings": 131072,
               "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                "original_max_position_embeddings": 8192}},
    "llama3_32": {"head_dim": 64, "max_position_embeddings": 131072,
                  "rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0,
                                      "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                      "original_max_position_embeddings": 8192}},
    "llama3_no_original": {"head_dim": 64, "max_position_embeddings": 2048,
                           "rope_scaling": {"rope_type": "llama3", "factor": 2.5, "low_freq_factor": 0.5,
                                            "high_freq_factor": 8}},
    "yarn": {"head_dim": 128, "rope_theta": 1000000.0, "max_position_embeddings": 131072,
             "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
    "yarn_legacy_type": {"head_dim": 64, "max_position_embeddings": 4096,
                         "rope_scaling": {"type": "yarn", "factor": 16, "original_max_position_embeddings": 256}},
    "yarn_attention_factor": {"head_dim": 64, "max_position_embeddings": 4096,
                              "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "attention_factor": 0.75,
                                               "original_max_position_embeddings": 2048}},
    "yarn_mscale": {"head_dim": 64, "max_position_embeddings": 163840,
                    "rope_scaling": {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.707,
                                     "beta_fast": 32, "beta_slow": 1, "original_max_position_embeddings": 4096}},
    "yarn_no_truncate": {"head_dim": 64, "rope_theta": 150000.0, "max_position_embeddings": 131072,
                         "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
                                          "truncate": False, "original_max_position_embeddings": 4096}},
    "yarn_betas": {"head_dim": 160, "max_position_embeddings": 65536,
                   "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "beta_fast": 24.5, "beta_slow": 2.5,
                                    "original_max_position_embeddings": 8192}},
    "yarn_factor_null": {"head_dim": 64, "max_position_embeddings": 12288,
                         "rope_scaling": {"rope_type": "yarn", "factor": None,
                                          "original_max_position_embeddings": 4096}},
    "yarn_top_level_original": {"head_dim": 32, "max_position_embeddings": 8192,
                                "original_max_position_embeddings": 1024,
                                "rope_scaling": {"rope_type": "yarn", "factor": 8.0}},
    "yarn_equal_range": {"head_dim": 16, "rope_theta": 1e12, "max_position_embeddings": 64,
                         "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "beta_fast": 40, "beta_slow": 40,
                                          "truncate": False, "original_max_position_embeddings": 2048}},
}


def frequencies(config):
    rope_type = config.rope_parameters["rope_type"]
    functions = {**ROPE_INIT_FUNCTIONS, "default": LlamaRotaryEmbedding.compute_default_rope_parameters}
    inv_freq, attention_factor = functions[rope_type](config)
    assert inv_freq.dtype == torch.float32
    return {"inv_freq": [float(f"{x:.9g}") for x in inv_freq.tolist()], "attention_factor": float(attention_factor)}


def main():
    cases = []
    for name, keys in CASES.items():
        text = {**BASE, "max_position_embeddings": 2048, **keys}
        config = AutoConfig.for_model(**json.loads(json.dumps(text)))
        cases.append({"name": name, "config": text, **frequencies(config)})
    with open("tests/golden/rope.json", "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")


if __name__ == "__main__":
    main()
