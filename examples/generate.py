#!/usr/bin/env python3
"""lockstep from Python, through its C interface alone: streams an answer, token by token.

    python3 examples/generate.py MODEL_FOLDER PROMPT [liblockstep.so]

The structures below are those of include/lockstep.h, field by field; the library sees from struct_size how much of them it
is given. Functions return 0, a positive outcome that is no error, or a negative error with its sentence in ls_error.
"""
import ctypes
import sys
from ctypes import POINTER, c_bool, c_char, c_char_p, c_double, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p


class ls_error(ctypes.Structure):
    _fields_ = [("status", c_int), ("text", c_char * 512), ("trace", c_char * 256)]


class ls_model_params(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("model", c_char_p),
        ("load_format", c_int),
        ("dummy_seed", c_uint64),
        ("cache_folder", c_char_p),
        ("log_fn", c_void_p),
        ("log_user", c_void_p),
        ("log_level", c_int),
        ("device", c_char_p),
    ]


class ls_engine_params(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("tensor_parallel_size", c_int),
        ("threads", c_int),
        ("dtype", c_int),
        ("kv_cache_dtype", c_int),
        ("max_model_len_tokens", c_int),
        ("max_num_seqs", c_int),
        ("max_num_batched_tokens", c_int),
        ("kv_cache_memory_bytes", c_int64),
        ("quantization", c_int),
        ("cpu_isa", c_char_p),
        ("device", c_char_p),
        ("kernels", c_char_p),
        ("graph_sizes", c_char_p),
        ("gpu_memory_utilization", c_double),
        ("profile", c_bool),
        ("trace_events", c_int),
        ("progress_fn", c_void_p),
        ("progress_user", c_void_p),
        ("async_scheduling", c_char_p),
        ("device_memory_bytes", c_int64),
        ("hosts", c_void_p),
        ("prefix_cache", c_bool),
        ("exchange", c_char_p),
        ("plan", c_char_p),
    ]


ls_text_fn = ctypes.CFUNCTYPE(None, c_void_p, c_void_p, c_int32, POINTER(c_char), c_size_t)


class ls_request_params(ctypes.Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("prompt", c_char_p),
        ("prompt_bytes", c_size_t),
        ("prompt_tokens", POINTER(c_int32)),
        ("n_prompt_tokens", c_size_t),
        ("max_tokens", c_int),
        ("min_tokens", c_int),
        ("temperature", c_double),
        ("top_k", c_int),
        ("top_p", c_double),
        ("min_p", c_double),
        ("repetition_penalty", c_double),
        ("presence_penalty", c_double),
        ("frequency_penalty", c_double),
        ("logit_bias", c_void_p),
        ("n_logit_bias", c_size_t),
        ("allowed_tokens", POINTER(c_int32)),
        ("n_allowed_tokens", c_size_t),
        ("bad_words", POINTER(c_char_p)),
        ("n_bad_words", c_size_t),
        ("stop", POINTER(c_char_p)),
        ("n_stop", c_size_t),
        ("stop_tokens", POINTER(c_int32)),
        ("n_stop_tokens", c_size_t),
        ("include_stop", c_bool),
        ("ignore_eos", c_bool),
        ("seed", c_uint64),
        ("choice", c_uint32),
        ("logprobs", c_int),
        ("prompt_logprobs", c_int),
        ("reuse", c_void_p),
        ("keep_cache", c_bool),
        ("prompt_logits", c_bool),
        ("hash_logits", c_bool),
        ("on_text", ls_text_fn),
        ("on_logits", c_void_p),
        ("user", c_void_p),
        ("priority", c_int32),
    ]


def open_library(path="liblockstep.so.0"):
    library = ctypes.CDLL(path)
    library.ls_model_open.argtypes = [POINTER(ls_model_params), POINTER(c_void_p), POINTER(ls_error)]
    library.ls_engine_open.argtypes = [c_void_p, POINTER(ls_engine_params), POINTER(c_void_p), POINTER(ls_error)]
    library.ls_engine_step.argtypes = [c_void_p, POINTER(ls_error)]
    library.ls_request_submit.argtypes = [c_void_p, POINTER(ls_request_params), POINTER(c_void_p), POINTER(ls_error)]
    for close in library.ls_request_free, library.ls_engine_close, library.ls_model_close:
        close.argtypes, close.restype = [POINTER(c_void_p)], None
    return library


def generate(library, folder, prompt, on_text, **settings):
    """Continues `prompt`; on_text gets each piece of text as soon as it is certain. settings: fields of ls_request_params."""
    error, model, engine, request = ls_error(), c_void_p(), c_void_p(), c_void_p()

    def check(status):
        if status < 0:
            raise RuntimeError(error.text.decode())
        return status

    def piece(user, request, token, text, text_bytes):
        on_text(ctypes.string_at(text, text_bytes).decode())

    # What LS_*_PARAMS_INIT set in C: where zero is not the default.
    params = ls_request_params(ctypes.sizeof(ls_request_params), max_tokens=16, temperature=-1, top_k=-1, top_p=-1, min_p=-1)
    params.logprobs = params.prompt_logprobs = -1
    params.prompt, params.prompt_bytes = prompt.encode(), len(prompt.encode())
    params.on_text = ls_text_fn(piece)
    for name, value in settings.items():
        setattr(params, name, value)
    try:
        model_params = ls_model_params(ctypes.sizeof(ls_model_params), model=folder.encode())
        check(library.ls_model_open(model_params, model, error))
        check(library.ls_engine_open(model, ls_engine_params(ctypes.sizeof(ls_engine_params)), engine, error))
        check(library.ls_request_submit(engine, params, request, error))
        while check(library.ls_engine_step(engine, error)) == 0:  # 1 is LS_IDLE: all requests are done
            pass
    finally:
        library.ls_request_free(request)
        library.ls_engine_close(engine)
        library.ls_model_close(model)


def main():
    if len(sys.argv) not in (3, 4):
        sys.exit(f"usage: {sys.argv[0]} MODEL_FOLDER PROMPT [liblockstep.so]")
    library = open_library(*sys.argv[3:])
    try:
        generate(library, sys.argv[1], sys.argv[2], lambda text: print(text, end="", flush=True), max_tokens=64, temperature=0)
    except RuntimeError as error:
        sys.exit(str(error))
    print()


if __name__ == "__main__":
    main()
