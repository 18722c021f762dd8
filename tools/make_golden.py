#!/usr/bin/env python3
"""Golden values for tests/golden, made by Hugging Face transformers: f32, CPU, eager attention.

    pip install -r tools/requirements.txt
    python3 tools/make_golden.py                 everything (a few minutes)
    python3 tools/make_golden.py demo qwen3_mqa  only these: case and checkpoint names, "dummy", "demo"

The same machine and packages give the same bytes again; another CPU or BLAS moves the last bits (the "noise" column).

tests/golden/<case>/config.json and golden.safetensors     weights: dummy, seed 0 (tools/dummy_weights.py), rounded to the
                                                           config's dtype, then used in f32
tests/golden/ckpt_*/                                       real checkpoints written by save_pretrained, and golden.safetensors
tests/golden/dummy_weights.json                            single dummy elements as f32 bits, for the C generator
tests/golden/demo_greedy.json, demo_logits.safetensors     the demo model (demo/)

golden.safetensors, for each prompt i = 0, 1, 2 (T_i tokens, vocabulary V, N = 12):
    prompt_i         I32 [T_i]     token ids
    logits_i         F32 [T_i, V]  logits at every prompt position; a "tail" case has logits_tail_i [8, V] instead: the last 8
    greedy_i         I32 [N]       greedy continuation; eos does not stop it
    greedy_logits_i  F32 [N, V]    the logits whose argmax is greedy_i[n]; row 0 is the last row of logits_i

What the script asserts, so that a golden value means something:
  - at each greedy step the gap of the top two logits exceeds 1e-3 of max|logit| (prompts are redrawn until it does);
  - model.generate() with its KV cache gives the same tokens as a forward pass over the whole sequence;
  - every feature of a case matters: the model with that feature changed ("off") has logits that differ by more than 1e-2
    (max|a-b| / max|b| of some row; for the rounding to a 16-bit dtype 3e-4, thrice the tests' tolerance);
  - the older form of config.json is read by transformers as the same model as the newer one.
"""
import json
import os
import shutil
import sys
import tempfile

os.environ.update(CUDA_VISIBLE_DEVICES="", HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TRANSFORMERS_VERBOSITY="error")

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

import dummy_weights

transformers.logging.disable_progress_bar()
torch.set_num_threads(2)
torch.set_float32_matmul_precision("highest")

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
GOLDEN = os.path.join(ROOT, "tests", "golden")
DEMO = os.path.join(ROOT, "demo")
N_GREEDY = 12
N_TAIL = 8
GAP_MIN = 1e-3
MATTERS_MIN = 1e-2
ROUNDING_MATTERS_MIN = 3e-4
CLASSES = {
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
}


# ---- Features turned off: functions of a model, or config keys to override ----

def edit(suffix, change):
    """A change to every parameter whose name ends so."""
    def apply(model):
        hits = [p for name, p in model.named_parameters() if name.endswith(suffix)]
        assert hits, f"no parameter ends in {suffix}"
        with torch.no_grad():
            for p in hits:
                change(p)
    return apply


def no_qk_norm(model):
    for layer in model.model.layers:
        layer.self_attn.q_norm = layer.self_attn.k_norm = torch.nn.Identity()


def no_rope_factor(model):
    assert model.model.rotary_emb.attention_scaling != 1
    model.model.rotary_emb.attention_scaling = 1.0


def untied(model):
    model.lm_head.weight = torch.nn.Parameter(dummy_weights.tensor("lm_head.weight", tuple(model.lm_head.weight.shape)))


QK_NORM = {"QK norm off": no_qk_norm,
           "q_norm weight 1": edit("q_norm.weight", torch.nn.init.ones_),
           "k_norm weight 1": edit("k_norm.weight", torch.nn.init.ones_)}
TIED = {"untied": untied}


def theta(value):
    return {"rope_type": "default", "rope_theta": value}


def rope_off(value):
    return {"rope scaling off": {"rope_parameters": theta(value)}}


def biases_off(*names):
    return {f"{name} 0": edit(f"{name}.bias", torch.nn.init.zeros_) for name in names}


def window_off(size, off):
    return {"window off": off, "window - 1": {"sliding_window": size - 1}, "window + 1": {"sliding_window": size + 1}}


# ---- The cases ----

def case(family, D, H, K, F, V, *, d=None, rope=None, tied=False, lengths=(1, 7, 21), older=None, off=None, tail=False, dtype="float32",
         positions=128, **keys):
    """older: None, or the keys to add to the older form of config.json. off: {label: what to change to see the feature}."""
    config = dict(hidden_size=D, num_attention_heads=H, num_key_value_heads=K, intermediate_size=F, vocab_size=V,
                  num_hidden_layers=2, max_position_embeddings=positions, tie_word_embeddings=tied, rope_parameters=rope or theta(10000.0), **keys)
    if d is not None:
        config["head_dim"] = d
    return dict(family=family, config=config, lengths=lengths, older=older, off=off or {}, tail=tail, dtype=dtype)


LLAMA3 = dict(rope_type="llama3", rope_theta=5000.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32)
YARN = dict(rope_type="yarn", rope_theta=10000.0, factor=4.0, original_max_position_embeddings=32)
YARN_MSCALE = dict(rope_type="yarn", rope_theta=1000.0, factor=4.0, original_max_position_embeddings=256, beta_fast=8.0, beta_slow=2.0,
                   mscale=1.0, mscale_all_dim=0.4, truncate=False)
YARN_2 = dict(rope_type="yarn", rope_theta=1000.0, factor=2.0, original_max_position_embeddings=64, attention_factor=1.25)
LINEAR = dict(rope_type="linear", rope_theta=10000.0, factor=2.5)
FULL = ["full_attention", "full_attention"]
ROPE_LENGTHS = (1, 9, 40)


def without(mapping, *keys):
    return {k: v for k, v in mapping.items() if k not in keys}


CASES = {
    "qwen3_gqa2": case("qwen3", 64, 8, 4, 96, 101, d=32, tied=True, rope=theta(1e6), off=QK_NORM | TIED | {"theta 1e4": {"rope_parameters": theta(1e4)}}),
    "qwen3_mha": case("qwen3", 72, 8, 8, 100, 97, d=32, off=QK_NORM),
    "qwen3_gqa4_d80": case("qwen3", 48, 8, 2, 112, 89, d=80, off=QK_NORM),
    "qwen3_mqa_d128": case("qwen3", 96, 8, 1, 88, 103, d=128, tied=True, off=QK_NORM | TIED),
    "qwen3_bias": case("qwen3", 64, 8, 4, 72, 83, d=32, attention_bias=True, off=biases_off("q_proj", "k_proj", "v_proj", "o_proj")),
    "qwen3_window": case("qwen3", 64, 8, 4, 96, 131, d=64, lengths=(1, 7, 37), use_sliding_window=True, sliding_window=8, max_window_layers=1,
                         off=window_off(8, {"layer_types": FULL}) | {
                             "both layers": {"layer_types": ["sliding_attention"] * 2, "max_window_layers": 0},
                             "layer 0": {"layer_types": ["sliding_attention", "full_attention"]}}),
    "qwen3_bf16": case("qwen3", 64, 8, 2, 96, 79, d=64, tied=True, dtype="bfloat16", off={"rounding off": {"dtype": "float32"}}),
    "qwen3_long": case("qwen3", 64, 8, 2, 96, 61, d=64, lengths=(249, 300, 513), tail=True, positions=1024, rope=theta(1e6), off={
        "theta 1e4": {"rope_parameters": theta(1e4)},
        "last 256 tokens alone": {"use_sliding_window": True, "sliding_window": 256, "layer_types": ["sliding_attention"] * 2}}),
    "mistral_window": case("mistral", 256, 8, 2, 144, 109, lengths=(1, 7, 37), sliding_window=8, off=window_off(8, {"sliding_window": None})),
    "mistral_nemo": case("mistral", 80, 8, 2, 112, 91, d=32, sliding_window=None, rope=theta(1e6), eos_token_id=[2, 5],
                         off={"theta 1e4": {"rope_parameters": theta(1e4)}}),
    "mistral_older": case("mistral", 512, 8, 4, 160, 113, lengths=(1, 16, 33), sliding_window=16, rms_norm_eps=1e-5, older={},
                          off=window_off(16, {"sliding_window": None})),
    "mistral_f16": case("mistral", 64, 8, 4, 96, 73, d=32, sliding_window=None, dtype="float16", off={"rounding off": {"dtype": "float32"}}),
    "llama_plain": case("llama", 256, 8, 8, 176, 107, rms_norm_eps=5e-3, rope=theta(5000.0),
                        off={"eps 1e-6": {"rms_norm_eps": 1e-6}, "theta 1e4": {"rope_parameters": theta(1e4)}}),
    "llama_llama3": case("llama", 64, 8, 2, 128, 99, d=64, tied=True, rope=LLAMA3, lengths=ROPE_LENGTHS, rms_norm_eps=1e-5, off=rope_off(5000.0) | TIED | {
        "low_freq_factor 2": {"rope_parameters": LLAMA3 | {"low_freq_factor": 2.0}},
        "high_freq_factor 3": {"rope_parameters": LLAMA3 | {"high_freq_factor": 3.0}}}),
    "llama_yarn": case("llama", 64, 8, 4, 96, 95, d=64, rope=YARN, lengths=ROPE_LENGTHS, off=rope_off(10000.0) | {
        "attention factor 1": no_rope_factor, "beta_fast 2": {"rope_parameters": YARN | {"beta_fast": 2.0}}}),
    "llama_yarn_mscale": case("llama", 64, 8, 2, 80, 87, d=64, rope=YARN_MSCALE, positions=1024, lengths=ROPE_LENGTHS, off=rope_off(1000.0) | {
        "attention factor 1": no_rope_factor,
        "truncate": {"rope_parameters": YARN_MSCALE | {"truncate": True}},
        "default betas": {"rope_parameters": without(YARN_MSCALE, "beta_fast", "beta_slow")},
        "no mscale": {"rope_parameters": without(YARN_MSCALE, "mscale", "mscale_all_dim")}}),
    "llama_linear_older": case("llama", 256, 8, 1, 96, 93, rope=LINEAR, lengths=ROPE_LENGTHS, older={}, off=rope_off(10000.0)),
    "llama_bias": case("llama", 64, 8, 2, 104, 85, d=32, attention_bias=True, mlp_bias=True,
                       off=biases_off("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")),
    "qwen2_older": case("qwen2", 256, 8, 2, 136, 101, rope=theta(1e6), sliding_window=4, max_window_layers=1,
                        older={"use_sliding_window": False, "sliding_window": 4, "max_window_layers": 1},
                        off=biases_off("q_proj", "k_proj", "v_proj") | {"window on": {"use_sliding_window": True, "sliding_window": 4, "layer_types": None}}),
    "qwen2_window_yarn_older": case("qwen2", 256, 8, 4, 120, 77, tied=True, rope=YARN_2, lengths=ROPE_LENGTHS, use_sliding_window=True,
                                    sliding_window=8, max_window_layers=1, older={},
                                    off=rope_off(1000.0) | window_off(8, {"layer_types": FULL}) | {"attention factor 1": no_rope_factor} | TIED),
}

# Real checkpoints: random normal weights, attention sharper than at initialisation, norms and biases away from 1 and 0.
CHECKPOINTS = {
    "ckpt_f32": case("llama", 32, 4, 2, 48, 67, d=16, dtype="float32"),
    "ckpt_bf16_sharded": case("qwen3", 32, 8, 2, 40, 71, d=32, tied=True, dtype="bfloat16") | {"shard": "30KB"},
    "ckpt_f16": case("qwen2", 64, 4, 2, 40, 61, dtype="float16"),
}


# ---- Configs and models ----

def older_form(config, extra):
    """The same config.json as transformers 4 wrote it: rope_theta, rope_scaling with "type", torch_dtype, nothing derived."""
    out = without(config, "rope_parameters", "layer_types", "dtype")
    if out.get("head_dim") == out["hidden_size"] // out["num_attention_heads"]:
        del out["head_dim"]
    rope = dict(config["rope_parameters"])
    out["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    out["rope_scaling"] = None if kind == "default" else {"type": kind} | rope
    return out | {"torch_dtype": config["dtype"], "transformers_version": "4.37.2"} | extra


def write_config(case, folder):
    """config.json as model.save_pretrained writes it, or in the older form. Returns it in the newer form."""
    config_class, model_class = CLASSES[case["family"]]
    model = model_class(config_class(**case["config"])).to(dummy_weights.DTYPES[case["dtype"]])
    with tempfile.TemporaryDirectory() as tmp:
        model.save_pretrained(tmp)
        with open(os.path.join(tmp, "config.json")) as f:
            text = f.read()
    config = json.loads(text)
    if case["older"] is not None:
        text = json.dumps(older_form(config, case["older"]), indent=2, sort_keys=True) + "\n"
    with open(os.path.join(folder, "config.json"), "w") as f:
        f.write(text)
    reread = AutoConfig.from_pretrained(folder)
    for key in config:
        assert key == "transformers_version" or same(getattr(reread, key), config[key]), (folder, key)
    return config


def same(a, b):
    """Equal, where a rope dict may also carry the older key "type" and a dtype may be a torch.dtype."""
    if isinstance(a, dict):
        return without(a, "type") == b
    return str(a).removeprefix("torch.") == b if isinstance(a, torch.dtype) else a == b


def dummy_model(config):
    """f32 model with dummy weights rounded to the config's dtype."""
    dtype = config.dtype
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    return dummy_weights.fill(model, dtype)


def changed(config, change):
    """The model of this config with one feature changed."""
    if callable(change):
        model = dummy_model(AutoConfig.for_model(**config))
        change(model)
        return model
    return dummy_model(AutoConfig.for_model(**(json.loads(json.dumps(config)) | change)))


# ---- Running ----

@torch.no_grad()
def logits_of(model, ids):
    """F32 [T, V], without a cache."""
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


def relative(a, b):
    """The tests' error measure, per row: max|a-b| / max|b|."""
    return ((a - b).abs().amax(-1) / b.abs().amax(-1)).max().item()


def gap_of(row):
    """(top1 - top2) / max|logit|."""
    top = row.topk(2).values
    return ((top[0] - top[1]) / row.abs().max()).item()


def greedy_of(model, prompt):
    """(prompt logits, ids, their logits, the smallest gap)."""
    logits = logits_of(model, prompt)
    rows, ids = [logits[-1]], []
    while True:
        ids.append(rows[-1].argmax().item())
        if len(ids) == N_GREEDY:
            return logits, ids, torch.stack(rows), min(map(gap_of, rows))
        rows.append(logits_of(model, prompt + ids)[-1])


def draw_prompt(name, i, length, n_vocab, model):
    """The first seeded random prompt whose greedy continuation is not a near tie."""
    for attempt in range(1000):
        rng = np.random.default_rng([dummy_weights.fnv1a64(name.encode()), i, attempt])
        prompt = rng.integers(0, n_vocab, length).tolist()
        result = greedy_of(model, prompt)
        if result[3] > GAP_MIN:
            return prompt, *result
    raise AssertionError(f"{name}: no prompt of {length} tokens without near ties")


def generate(model, prompt):
    """transformers' own greedy search, with its KV cache."""
    model.generation_config.eos_token_id = None
    out = model.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), do_sample=False,
                         max_new_tokens=N_GREEDY, pad_token_id=0)
    return out[0, len(prompt):].tolist()


def write_golden(name, case, model, folder):
    """golden.safetensors. Returns (the prompt of the last index, its logits, a row of the printed table)."""
    tensors, gaps, logits = {}, [], None
    for i, length in enumerate(case["lengths"]):
        prompt, logits, ids, rows, gap = draw_prompt(name, i, length, model.config.vocab_size, model)
        assert generate(model, prompt) == ids, f"{name}: generate() with a cache disagrees"
        gaps.append(gap)
        tensors[f"prompt_{i}"] = torch.tensor(prompt, dtype=torch.int32)
        tensors["logits_tail_%d" % i if case["tail"] else "logits_%d" % i] = (logits[-N_TAIL:] if case["tail"] else logits).clone()
        tensors[f"greedy_{i}"] = torch.tensor(ids, dtype=torch.int32)
        tensors[f"greedy_logits_{i}"] = rows
    note = {"transformers": transformers.__version__, "torch": torch.__version__, "greedy_gap_min": float(f"{min(gaps):.3g}")}
    save(tensors, os.path.join(folder, "golden.safetensors"), metadata={"golden": json.dumps(note)})
    # How much of the golden values is f32 rounding: the same model with f64 weights and activations (norms and rope stay f32).
    noise = relative(logits_of(model.double(), prompt).double(), logits.double())
    c = model.config
    shape = f"{c.hidden_size:4d} {c.num_attention_heads:2d}/{c.num_key_value_heads:<2d} {getattr(c, 'head_dim', c.hidden_size // c.num_attention_heads):4d}"
    row = f"{name:24s} {shape} {c.intermediate_size:4d} {c.vocab_size:4d} {min(gaps):8.1e} {noise:8.1e}"
    return prompt, logits, row


def size_of(folder):
    return sum(os.path.getsize(os.path.join(folder, f)) for f in os.listdir(folder))


def save(tensors, path, metadata=None):
    save_file(tensors, path, metadata=metadata)
    os.chmod(path, 0o644)  # safetensors makes 0600


def fresh(name):
    folder = os.path.join(GOLDEN, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    return folder


def make_case(name):
    case, folder = CASES[name], fresh(name)
    config = write_config(case, folder)
    prompt, logits, row = write_golden(name, case, dummy_model(AutoConfig.from_pretrained(folder)), folder)
    effects, stored = [], slice(-N_TAIL if case["tail"] else None, None)
    for label, change in case["off"].items():
        other = changed(config, change)
        effect = relative(logits_of(other, prompt)[stored], logits[stored])
        assert effect > (ROUNDING_MATTERS_MIN if label == "rounding off" else MATTERS_MIN), f"{name}: {label} changes only {effect:.1e}"
        effects.append(f"{label} {effect:.2g}")
    print(f"{row} {size_of(folder):8d}  {', '.join(effects)}", flush=True)


@torch.no_grad()
def make_checkpoint(name):
    case, folder = CHECKPOINTS[name], fresh(name)
    config_class, model_class = CLASSES[case["family"]]
    model = model_class(config_class(**case["config"]))
    generator = torch.Generator().manual_seed(dummy_weights.fnv1a64(name.encode()) >> 1)
    for parameter_name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.dim() == 2:
            scale = 2.0 if ("q_proj" in parameter_name or "k_proj" in parameter_name) else 1.0
            p.copy_(noise * scale / p.shape[1] ** 0.5)
        else:
            p.copy_(1 + 0.1 * noise if parameter_name.endswith("norm.weight") else 0.3 * noise)
    model.to(dummy_weights.DTYPES[case["dtype"]]).save_pretrained(folder, max_shard_size=case.get("shard", "1GB"))
    shards = [f for f in os.listdir(folder) if f.endswith(".safetensors")]
    for f in shards:
        os.chmod(os.path.join(folder, f), 0o644)
    assert len(shards) >= 3 if "shard" in case else len(shards) == 1
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    _, _, row = write_golden(name, case, model, folder)
    assert size_of(folder) < 150_000, size_of(folder)
    print(f"{row} {size_of(folder):8d}  {len(shards)} file(s) of {case['dtype']}", flush=True)


def make_dummy():
    """Elements of the dummy generator: all of a few small tensors, some of large ones (indices beyond 2^32 too)."""
    big = [0, 1, 2559, 2560, 388956159]
    wanted = [("model.embed_tokens.weight", [151936, 2560], "bfloat16", 0, big), ("model.embed_tokens.weight", [151936, 2560], "bfloat16", 1, big),
              ("lm_head.weight", [1 << 20, 8192], "float32", 7, [0, (1 << 32) - 1, 1 << 32, (1 << 33) - 1]),
              ("model.layers.0.self_attn.q_proj.weight", [3, 5], "float32", 0, None), ("model.layers.0.self_attn.q_proj.weight", [3, 5], "float16", 0, None),
              ("model.layers.0.self_attn.q_proj.weight", [3, 5], "bfloat16", (1 << 64) - 1, None),
              ("model.layers.11.mlp.down_proj.weight", [4, 100], "float16", 123456789, [0, 99, 100, 399]),
              ("model.layers.1.input_layernorm.weight", [8], "float32", 0, None), ("model.layers.1.self_attn.q_norm.weight", [8], "bfloat16", 0, None),
              ("model.norm.weight", [8], "float32", 0, None), ("model.layers.1.self_attn.q_proj.bias", [8], "float16", 3, None)]
    lines = []
    for name, shape, dtype, seed, index in wanted:
        index = list(range(int(np.prod(shape)))) if index is None else index
        values = torch.from_numpy(dummy_weights.values_at(name, shape, index, seed)).to(dummy_weights.DTYPES[dtype]).float()
        bits = [f"{b & 0xFFFFFFFF:08x}" for b in values.view(torch.int32).tolist()]
        lines.append(json.dumps(dict(name=name, shape=shape, dtype=dtype, seed=str(seed), index=index, f32_bits=bits)))
    with open(os.path.join(GOLDEN, "dummy_weights.json"), "w") as f:
        f.write('{"note": "elements rounded to dtype, then shown as the bits of the equal f32; seed is a u64 in decimal",\n"tensors": [\n'
                + ",\n".join(lines) + "\n]}\n")
    print("dummy_weights.json", len(wanted), "tensors")


# ---- The demo model ----

N_DEMO, N_DEMO_NEW, DEMO_GAP_MIN = 50, 200, 1e-5


def ask(text):
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


STORIES = [
    "Once upon a time, there was a little dog named", "Lily and Tom went to the park with their mom. They saw a big",
    "One day, a small bird could not find her nest.", "The old man sat by the sea and", "Ben had a new red ball. He liked to",
    "It was raining. Sara looked out of the window and said,", "\"Mom, can I have a cookie?\" asked Max. His mom smiled and said,",
    "Once there was a tree. The tree was very tall. Every day, birds came to sing in it. One day, no bird came, and the tree was sad. Then",
    "In a far away land, a king had a golden crown that he never wore because", "The cat and the mouse were best friends. They",
    "Tim was afraid of the dark. At night he always kept a small lamp next to his bed. His sister Anna did not understand why. One night the lamp broke and",
    "Once upon a time, in a big forest, there lived a rabbit.\n\nThe rabbit loved carrots.\n\n", "Grandma made soup for", "She ran and ran until",
    "There was a girl who had a doll. The doll had blue eyes and a pink dress. The girl took the doll to school, to the shop, to the beach and to her bed. "
    "Her friends had dolls too, but none of them had such blue eyes. One day the girl forgot the doll on the bus. She cried and cried. Her dad called the bus driver. The driver said,",
    "The boat was slow, but", "A frog jumped into the pond. Splash! The fish", "Mia found a shiny key under the", "When the sun came up, the farmer", "The robot wanted to learn how to dance.",
    "Jack and his brother built a castle of sand. A big wave", "The moon was so bright that night that", "He opened the box. Inside was", "Every morning, the little train went up the hill. \"I can do it,\" it said. One morning, there was snow and",
    "Sue was sick. Her friend brought", "The bear was hungry. He looked for honey, but the bees",
]
CHATS = [
    ask("Tell me a story about a red boat and the rain."), ask("Write a short story about dragon."), ask("Can you tell me a story with apple, school and friend?"),
    ask("Please write a story that has bicycle in it."), ask("I want to hear a story about snow and mittens."), ask("Tell me a story about a brave mouse who finds cheese on the moon."),
    ask("Hello!"), ask("What is 2 + 2?"), ask("Write a short story about cake and balloon."), ask("Tell me a story about sharing."), ask("Why is the sky blue?"),
    ask("Can you tell me a story with whale?"), ask("Please write a story that has a very long name in it, and a king, and a queen, and seven small goats who live in a shoe near the river."),
    "<|im_start|>system\nYou are a kind story teller.<|im_end|>\n" + ask("Tell me a story about a train."),
    ask("Tell me a story about duck.") + "Once there was a duck.<|im_end|>\n" + ask("Now one about frog and pond."),
    ask("I want to hear a story about kite."), ask("Write a short story about pirate, treasure and parrot."), ask("Please write a story that has butter in it."),
    ask("Tell me a story about lonely and cloud."), ask("Can you tell me a story with garden and worm?"), ask("Write a short story about a lost mitten."), ask("Tell me a story."),
    ask("I want to hear a story about music."), ask("Please write a story that has thunder and blanket in it."),
]
ODD = [
    "The", "Zebra", "a", "\n", " ", "1234567890", "3.14159 and 2.71828", "for (int i = 0; i < n; i++) {\n    sum += x[i];\n}\n", "def f(x):\n    return x * 2\n", "Café naïve façade",
    "日本語のお話です。", "Привет, мир!", "🙂🚀🌈", "!!!???...", "THE BIG DOG SAID HELLO", "<|endoftext|>", "<|im_start|>", "{\"key\": [1, 2, 3], \"name\": null}", "https://example.com/a?b=c&d=e", "a b c d e f g",
]


def demo_candidates():
    """70 texts, the kinds mixed so that any first 50 hold all of them."""
    kinds = [[list(kind), 0] for kind in (STORIES, CHATS, ODD)]
    out, total = [], sum(len(kind) for kind, _ in kinds)
    while len(out) < total:
        kind = min((k for k in kinds if k[1] < len(k[0])), key=lambda k: (k[1] + 1) / len(k[0]))
        out.append(kind[0][kind[1]])
        kind[1] += 1
    return out


@torch.no_grad()
def demo_greedy(model, prompt):
    """(ids, the smallest gap, the largest difference of a logit row from one forward pass over the whole text)."""
    out = model(input_ids=torch.tensor([prompt]), use_cache=True, logits_to_keep=1)
    rows, ids = [out.logits[0, -1]], []
    while True:
        ids.append(rows[-1].argmax().item())
        if len(ids) == N_DEMO_NEW:
            break
        out = model(input_ids=torch.tensor([ids[-1:]]), past_key_values=out.past_key_values, use_cache=True)
        rows.append(out.logits[0, -1])
    rows = torch.stack(rows)
    return ids, min(map(gap_of, rows)), relative(logits_of(model, prompt + ids[:-1])[len(prompt) - 1:], rows)


def make_demo():
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(os.path.join(DEMO, "tokenizer.json"))
    model = AutoModelForCausalLM.from_pretrained(DEMO, dtype=torch.float32, attn_implementation="eager").eval()
    candidates = demo_candidates()
    kept, rejected, noise = [], [], 0.0
    for n_tried, text in enumerate(candidates, 1):
        prompt = tokenizer.encode(text).ids
        ids, gap, difference = demo_greedy(model, prompt)
        noise = max(noise, difference)
        entry = dict(text=text, gap_min=float(f"{gap:.3g}"), prompt_ids=prompt, ids=ids)
        (kept if gap > DEMO_GAP_MIN else rejected).append(entry)
        if len(kept) == N_DEMO:
            break
    assert len(kept) == N_DEMO, f"only {len(kept)} of {len(candidates)} candidates have gaps above {DEMO_GAP_MIN}"
    head = dict(
        model="demo (bf16 checkpoint), transformers f32 on CPU, eager attention, greedy with a KV cache, eos does not stop it",
        rule=f"the first {N_DEMO} of {len(candidates)} candidate texts, in the script's order, whose smallest (top1 - top2) / max|logit| over the "
             f"{N_DEMO_NEW} steps exceeds {DEMO_GAP_MIN:g}; the list stops at the {N_DEMO}th, the rejected ones before it are counted and listed by text",
        n_tried=n_tried, rejected=[dict(text=e["text"], gap_min=e["gap_min"]) for e in rejected],
        margin_min=min(e["gap_min"] for e in kept), noise=float(f"{noise:.3g}"),
        noise_is="largest max|a-b| / max|b| of a logit row between decode with a cache and one forward pass over the whole text",
        transformers=transformers.__version__, torch=torch.__version__)
    with open(os.path.join(GOLDEN, "demo_greedy.json"), "w") as f:
        f.write(json.dumps(head, indent=1)[:-2] + ',\n "prompts": [\n' + ",\n".join(json.dumps(e, separators=(",", ":")) for e in kept) + "\n]}\n")
    tensors = {}
    for i, text in enumerate([CHATS[0], STORIES[7]]):
        prompt = tokenizer.encode(text).ids
        tensors[f"prompt_{i}"] = torch.tensor(prompt, dtype=torch.int32)
        tensors[f"logits_tail_{i}"] = logits_of(model, prompt)[-4:].clone()
    save(tensors, os.path.join(GOLDEN, "demo_logits.safetensors"))
    gaps = sorted(e["gap_min"] for e in kept)
    print(f"demo_greedy.json: {n_tried} tried, {len(rejected)} rejected, smallest gaps {gaps[:4]}, noise {noise:.1e}, prompts of "
          f"{min(len(e['prompt_ids']) for e in kept)} to {max(len(e['prompt_ids']) for e in kept)} tokens; demo_logits.safetensors: "
          f"{[len(t) for name, t in tensors.items() if name.startswith('prompt')]} tokens")


def main():
    everything = [*CASES, *CHECKPOINTS, "dummy", "demo"]
    names = sys.argv[1:] or everything
    unknown = [name for name in names if name not in everything]
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; known: {', '.join(everything)}")
    os.makedirs(GOLDEN, exist_ok=True)
    print(f"{'case':24s} {'D':>4s} {'H/K':5s} {'d':>4s} {'F':>4s} {'V':>4s} {'gap':>8s} {'noise':>8s} {'bytes':>8s}  logits change by, with")
    for name in names:
        if name in CASES:
            make_case(name)
        elif name in CHECKPOINTS:
            make_checkpoint(name)
        else:
            make_dummy() if name == "dummy" else make_demo()
    total = sum(os.path.getsize(os.path.join(folder, f)) for folder, _, files in os.walk(GOLDEN) for f in files)
    print(f"tests/golden: {total} bytes")


if __name__ == "__main__":
    main()
