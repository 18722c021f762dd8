#!/usr/bin/env python3
"""lockstep beside Hugging Face transformers on the same made-up weights: logits of every position, prefill and decode.

    python3 tests/cuda/agree_transformers.py --library build/gpu/liblockstep.so --model FOLDER_WITH_CONFIG_JSON

Both make the weights themselves (tools/dummy_weights.py: an element is a function of seed, name and index), so that a model
of any size needs a config.json alone. lockstep runs through its C interface: prompts of token ids, the logits of every
prompt position (prefill), then --steps greedy tokens and theirs (decode). transformers runs each whole sequence, prompt and
answer, in one forward pass of eager attention without TF32.

A step has logits for 64 rows more than there are requests, so that is how long the chunks of a prompt are; --chunk N makes them
N rows, as they are where only the last row's logits are wanted. --layers, --vocab and --window change the config. A long prompt
(the reference keeps scores of 32 heads of 8192 x 8192, some 26 GB in f32):

    agree_transformers.py --model FOLDER --lengths 8192 --chunk 2048 --layers 8 --vocab 32768 --steps 4 --modes f32,bf16

  errors   max|a-b| / max|b| of a row, the worst row; f32 must stay within 1e-4, other dtypes' are shown
  margin   where the reference's best logit leads by more than twice the tolerance (f16 2e-3, bf16 2e-2 of max|b|), the
           argmax must be the same; at least --share of a part's positions must qualify, or nothing was shown
  tokens   in decode: lockstep's tokens are the argmax of its own logits, and its next token is judged by the margin rule

References are transformers in f32 ("f32"), in the run dtype, and for w8a16 in f32 with weights that went to int8 and back by
the rule of src/backend/ops.h. Each judgement is made once more with the reference one row off and must fail then.
Exit status: 0 all passed, 1 a disagreement, 2 it could not be run.
"""
import argparse
import ctypes
import json
import os
import random
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [os.path.join(ROOT, "tools"), os.path.join(ROOT, "examples")]
sys.dont_write_bytecode = True
os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_PROGRESS_BARS="1", TRANSFORMERS_VERBOSITY="error")

try:
    import numpy as np
    import torch
    import transformers
except ImportError as missing:
    print(f"agree_transformers: not run: {missing}")
    sys.exit(2)

import dummy_weights
import generate as api

DTYPE = {"f32": (1, torch.float32), "bf16": (2, torch.bfloat16), "f16": (3, torch.float16)}
W8A16 = 1
TOLERANCE = {"f32": 1e-4, "bf16": 2e-2, "f16": 2e-3}
LOGITS_FN = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(ctypes.c_float), ctypes.c_int)


# ---- lockstep ----


class Answer:
    """Of one prompt: `ids` are its tokens and then the answer's, `rows` the logits of all positions but the last's."""

    def __init__(self, prompt):
        self.prompt, self.new, self.rows = prompt, [], {}
        self.ids = self.logits = None

    def finish(self):
        self.ids = self.prompt + self.new
        self.logits = np.stack([self.rows.pop(i) for i in range(len(self.ids) - 1)])


def run_lockstep(library, args, mode, prompts):
    """Answers of a fresh engine, each prompt alone."""
    dtype, _, quantization = mode.partition("+")
    error, model, engine = api.ls_error(), ctypes.c_void_p(), ctypes.c_void_p()

    def check(status):
        if status < 0:
            raise RuntimeError(f"lockstep: {error.text.decode()}")
        return status

    model_params = api.ls_model_params(ctypes.sizeof(api.ls_model_params), model=args.model.encode(), load_format=1, dummy_seed=args.seed)
    engine_params = api.ls_engine_params(
        ctypes.sizeof(api.ls_engine_params), dtype=DTYPE[dtype][0], device=args.device.encode(),
        max_model_len_tokens=max(map(len, prompts)) + args.steps + 1, max_num_seqs=max(args.batch, args.chunk),
        max_num_batched_tokens=args.chunk, quantization=W8A16 if quantization else 0)
    answers = [Answer(prompt) for prompt in prompts]
    try:
        check(library.ls_model_open(model_params, model, error))
        check(library.ls_engine_open(model, engine_params, engine, error))
        for first in range(0, len(answers), args.batch):
            run_requests(library, engine, check, error, answers[first:first + args.batch], args.steps + 1)
    finally:
        library.ls_engine_close(engine)
        library.ls_model_close(model)
    for answer in answers:
        answer.finish()
    return answers


def run_requests(library, engine, check, error, answers, max_tokens):
    requests, kept = [], []
    for answer in answers:
        def on_logits(_user, _request, position, logits, n_vocab, answer=answer):
            answer.rows[position] = np.ctypeslib.as_array(logits, (n_vocab,)).copy()

        def on_text(_user, _request, token, _text, _n, answer=answer):
            if token >= 0:
                answer.new.append(token)

        ids = (ctypes.c_int32 * len(answer.prompt))(*answer.prompt)
        params = api.ls_request_params(ctypes.sizeof(api.ls_request_params), prompt_tokens=ids, n_prompt_tokens=len(ids),
                                       max_tokens=max_tokens, temperature=0, top_k=0, top_p=1, min_p=0, repetition_penalty=1)
        params.logprobs = params.prompt_logprobs = -1
        params.ignore_eos = params.prompt_logits = True
        params.on_text = api.ls_text_fn(on_text)
        logits_fn = LOGITS_FN(on_logits)
        params.on_logits = ctypes.cast(logits_fn, ctypes.c_void_p)
        kept.append((params, logits_fn, ids))
        requests.append(ctypes.c_void_p())
        check(library.ls_request_submit(engine, params, requests[-1], error))
    while check(library.ls_engine_step(engine, error)) == 0:
        pass
    for request, answer in zip(requests, answers):
        library.ls_request_free(request)
        if len(answer.new) != max_tokens:
            raise RuntimeError(f"lockstep: a request ended after {len(answer.new)} of {max_tokens} tokens")


# ---- transformers ----


def through_int8(weight):
    """In place: to int8 and back, one scale for each row and leaf of the columns."""
    cols = weight.shape[1]
    border = [min(cols, (cols * leaf + 127) // 128 * 16) for leaf in range(9)]
    for first, last in zip(border, border[1:]):
        if last > first:
            leaf = weight[:, first:last]
            most = leaf.abs().amax(dim=1, keepdim=True)
            scale = most / torch.full_like(most, 127)  # by a plain 127 a GPU multiplies by 1/127, which moves near-ties
            leaf.copy_((leaf / torch.where(scale > 0, scale, 1)).round().clamp(-127, 127) * scale)


def reference_model(args, name):
    """f32, bf16 or f16; "f32 of int8": f32 with all matrices through int8."""
    config = transformers.AutoConfig.from_pretrained(args.model)
    stored = config.dtype or torch.float32
    dtype = DTYPE[name.split()[0]][1]
    with torch.device(args.torch_device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="eager").eval()
    model.tie_weights()
    for module in model.modules():  # frequencies as a CPU computes them: a GPU's last bit shows at position 8192
        if hasattr(module, "inv_freq"):
            module.inv_freq.copy_(type(module)(config).inv_freq)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            assert parameter.dtype == dtype, (key, parameter.dtype)
        dummy_weights.fill(model, stored, args.seed)
        if name.endswith("int8"):
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    through_int8(parameter)
    return model


def reference_logits(model, ids, device):
    with torch.no_grad():
        return model(torch.tensor([ids[:-1]], device=device), use_cache=False).logits[0].float()


# ---- Judgement ----


class Part:
    """Prefill or decode rows of one mode against one reference."""

    def __init__(self):
        self.errors, self.rows, self.qualify, self.agree = [], 0, 0, 0
        self.finite = True

    def add(self, ours, theirs, tolerance):
        if len(ours) == 0:
            return
        top = theirs.abs().amax(dim=1)
        self.errors += ((ours - theirs).abs().amax(dim=1) / top).tolist()
        best = theirs.topk(2, dim=1)
        clear = best.values[:, 0] - best.values[:, 1] > 2 * tolerance * top
        same = ours.argmax(dim=1) == best.indices[:, 0]
        self.finite = self.finite and bool(torch.isfinite(ours).all())
        self.rows += len(ours)
        self.qualify += int(clear.sum())
        self.agree += int((clear & same).sum())

    def passes(self, error_limit, share):
        enough = self.rows > 0 and self.qualify >= share * self.rows
        return self.finite and enough and self.agree == self.qualify and (error_limit is None or max(self.errors) <= error_limit)


def judge(args, answers, references, tolerance, shift):
    """The parts "prefill" and "decode"; shift 1: against the reference of the position before, to be told apart."""
    parts = {"prefill": Part(), "decode": Part()}
    for answer, theirs in zip(answers, references):
        ours = torch.from_numpy(answer.logits).to(args.torch_device)
        theirs = theirs.roll(shift, 0)
        n = len(answer.prompt)
        parts["prefill"].add(ours[:n], theirs[:n], tolerance)
        parts["decode"].add(ours[n:], theirs[n:], tolerance)
    return parts


def compare(args, mode, reference, answers, logits, results):
    """One mode against one reference; true if it passed."""
    # int8 against its own rounding is as exact as the run dtype; against weights that were not rounded it is int8's 5e-2.
    dtype = mode.partition("+")[0]
    tolerance = TOLERANCE[dtype]
    limit = TOLERANCE["f32"] if dtype == "f32" and reference.startswith("f32") else None
    wrong = judge(args, answers, logits, tolerance, 1)
    all_passed = True
    for name, part in judge(args, answers, logits, tolerance, 0).items():
        passed = part.passes(limit, args.share)
        canary = not wrong[name].passes(limit, args.share)
        all_passed = all_passed and passed and canary
        errors = sorted(part.errors)
        print(f"{'PASS' if passed and canary else 'FAIL'}  {mode:10} to {reference:12} {name:8} {part.rows:5} rows  error worst {errors[-1]:.1e}"
              f" median {errors[len(errors) // 2]:.1e}{f' (limit {limit:.0e})' if limit else ''}  margin {part.agree} of {part.qualify}"
              f" agree, {100 * part.qualify / part.rows:.0f} % qualify{'' if canary else '  CANARY PASSED'}", flush=True)
        results.append({"mode": mode, "reference": reference, "part": name, "rows": part.rows, "error_worst": errors[-1],
                        "error_median": errors[len(errors) // 2], "qualify": part.qualify, "agree": part.agree, "passed": passed and canary})
    return all_passed


def own_tokens(mode, answers):
    """The tokens that were given out are the argmax of the logits that were."""
    wrong = sum(int(row.argmax()) != token for a in answers for row, token in zip(a.logits[len(a.prompt) - 1:], a.new))
    if wrong:
        print(f"FAIL  {mode:10} {wrong} tokens are not the argmax of lockstep's own logits")
    return wrong == 0


def changed_model(args, folder):
    """The config with what the options change, as a file in a folder of its own."""
    with open(os.path.join(args.model, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    changes = {"num_hidden_layers": args.layers, "vocab_size": args.vocab, "sliding_window": args.window}
    config.update({key: value for key, value in changes.items() if value is not None})
    if args.layers is not None:
        config["max_window_layers"] = args.layers
        config.pop("layer_types", None)
    if args.vocab is not None:  # ids beyond it
        config.update({key: 0 for key in ("bos_token_id", "eos_token_id", "pad_token_id") if config.get(key) is not None})
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file)
    return folder


def references_of(mode):
    dtype, _, quantization = mode.partition("+")
    if quantization:
        return ["f32 of int8"]
    return ["f32"] if dtype == "f32" else ["f32", dtype]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--library", default=os.path.join(ROOT, "build/gpu/liblockstep.so"))
    parser.add_argument("--model", required=True, help="folder with config.json")
    parser.add_argument("--device", default="cuda", help="of lockstep: cuda or cpu")
    parser.add_argument("--torch-device", default="cuda")
    parser.add_argument("--modes", default="f32,bf16,f16,f32+w8a16,bf16+w8a16")
    parser.add_argument("--lengths", default="26,300,700", help="of the prompts, in tokens")
    parser.add_argument("--steps", type=int, default=16, help="decode steps after each")
    parser.add_argument("--batch", type=int, default=1, help="requests that run at once")
    parser.add_argument("--chunk", type=int, default=0, help="rows of a prompt's chunks")
    parser.add_argument("--layers", type=int, help="instead of the config's")
    parser.add_argument("--vocab", type=int, help="tokens, instead of the config's")
    parser.add_argument("--window", type=int, help="of sliding attention, instead of the config's")
    parser.add_argument("--share", type=float, default=0.25, help="of the positions that must qualify")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="file for the results")
    return parser.parse_args()


def main():
    args = arguments()
    name = args.model
    with tempfile.TemporaryDirectory() as folder:
        args.model = changed_model(args, folder)
        return agree(args, name)


def agree(args, name):
    if args.torch_device == "cuda" and not torch.cuda.is_available():
        print("agree_transformers: not run: torch sees no GPU (--torch-device cpu is slow, for small models)")
        return 2
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    config = transformers.AutoConfig.from_pretrained(args.model)
    draw = random.Random(args.seed)
    prompts = [[draw.randrange(config.vocab_size) for _ in range(int(n))] for n in args.lengths.split(",")]
    library = api.open_library(args.library)
    modes, answers, passed, results = [], {}, True, []
    device = torch.cuda.get_device_name() if args.torch_device == "cuda" else "CPU"
    print(f"{name}: {device}, torch {torch.__version__}, transformers {transformers.__version__}; prompts of {args.lengths} tokens,"
          f" {args.steps} decode steps each, {args.batch} at once")
    for mode in args.modes.split(","):
        start = time.monotonic()
        try:
            answers[mode] = run_lockstep(library, args, mode, prompts)
        except RuntimeError as error:
            print(f"FAIL  {mode:10} {error}")
            passed = False
            continue
        modes.append(mode)
        passed = own_tokens(mode, answers[mode]) and passed
        print(f"      {mode:10} lockstep ran in {time.monotonic() - start:.1f} s", flush=True)
    for reference in dict.fromkeys(r for mode in modes for r in references_of(mode)):
        model = reference_model(args, reference)
        for mode in modes:
            if reference in references_of(mode):
                logits = [reference_logits(model, answer.ids, args.torch_device) for answer in answers[mode]]
                passed = compare(args, mode, reference, answers[mode], logits, results) and passed
        del model
        if args.torch_device == "cuda":
            torch.cuda.empty_cache()
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"model": name, "device": device, "torch": torch.__version__, "transformers": transformers.__version__,
                       "results": results}, file, indent=1)
            file.write("\n")
    print("PASS" if passed and results else "FAIL")
    return 0 if passed and results else 1


if __name__ == "__main__":
    sys.exit(main())
