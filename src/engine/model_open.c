/* Opening a model: config, tokenizer, generation defaults, tensors. The public functions are described in lockstep.h. */
#include <stdlib.h>

#include "base/clock.h"
#include "base/file.h"
#include "engine/engine.h"
#include "model/family.h"

ls_status check_struct_size(const char *name, size_t given, size_t known, ls_error *err) {
    if (given == 0 || given > known) {
        return error_set(err, LS_EINVAL, "%s: struct_size is %zu: %s", name, given,
                         given == 0 ? "start it with its LS_..._INIT macro" : "of a newer header than this library");
    }
    return LS_OK;
}

static ls_status open_folder(ls_model *model, const ls_model_params *params, ls_error *err) {
    char path[4096];
    TRY(spec_read(&model->spec, params->model, err));
    TRY(generation_defaults_read(&model->defaults, params->model, model->spec.n_vocab, err));
    TRY(path_join(path, sizeof path, params->model, "tokenizer.json", err));
    if (params->load_format != LS_LOAD_DUMMY || file_exists(path)) {
        TRY(tokenizer_open(&model->tokenizer, path, params->cache_folder, err));
        if (tokenizer_max_id(model->tokenizer) >= model->spec.n_vocab) {
            return error_set(err, LS_EFORMAT, "%s: token id %d, but config.json's vocab_size is %d", path,
                             tokenizer_max_id(model->tokenizer), model->spec.n_vocab);
        }
    }
    if (params->load_format == LS_LOAD_DUMMY) {
        return LS_OK;
    }
    TRY(checkpoint_open(&model->checkpoint, params->model, err));
#ifdef LS_CUDA
    if (model->start != NULL) {
        cuda_start_read_ahead(model->start, model->checkpoint);
    }
#endif
    return LS_OK;
}

/* Every weight of the model, before any engine: a wrong checkpoint is refused at once. */
static ls_status check_tensors(const ls_model *model, ls_error *err) {
    ls_program *program;
    weight_source source = {.checkpoint = model->checkpoint};
    TRY(program_build(&program, &model->spec, (ls_group){0, 1}, model->spec.dtype, LS_QUANTIZATION_NONE, err));
    ls_status st = weights_check(program, &source, err);
    program_destroy(&program);
    return st;
}

static ls_status start_device(ls_model *model, const char *device, ls_error *err) {
    device_choice choice;
    TRY(device_choice_read(&choice, device, err));
#ifdef LS_CUDA
    if (device != NULL && choice.may_be_cuda) {
        model->start = cuda_start_begin(choice.ordinal);
    }
#else
    (void)model;
#endif
    return LS_OK;
}

ls_status ls_model_open(const ls_model_params *params, ls_model **out, ls_error *err) {
    TRY(check_struct_size("ls_model_params", params->struct_size, sizeof *params, err));
    ls_model_params known = {0}; /* a program with an older header gave less than we know */
    memcpy(&known, params, params->struct_size);
    params = &known;
    if (params->model == NULL) {
        return error_set(err, LS_EINVAL, "ls_model_params: model is missing");
    }
    int64_t start = clock_ns();
    ls_model *model = calloc(1, sizeof *model);
    ls_status st = LS_OK;
    if (model == NULL) {
        return error_set(err, LS_ENOMEM, "model: out of memory");
    }
    model->open_ns = start;
    model->log = (ls_log){params->log_fn, params->log_user, params->log_level};
    model->dummy_seed = params->dummy_seed;
    TRY_GOTO(start_device(model, params->device, err), fail);
    if (folder_exists(params->model)) {
        model->folder = strdup(params->model);
        TRY_GOTO(model->folder != NULL ? LS_OK : error_set(err, LS_ENOMEM, "model: out of memory"), fail);
        TRY_GOTO(open_folder(model, params, err), fail);
    } else if (params->load_format == LS_LOAD_DUMMY) {
        TRY_GOTO(spec_by_name(&model->spec, params->model, err), fail);
    } else {
        TRY_GOTO(error_set(err, LS_ENOTFOUND,
                           "%s: no such folder; a model is a folder with config.json, "
                           "tokenizer.json and *.safetensors",
                           params->model),
                 fail);
    }
    TRY_GOTO(check_tensors(model, err), fail);
    model->load_us = (clock_ns() - start) / 1000;
    log_line(&model->log, LS_LOG_DEBUG, "%s: %s, %d layers, D %d, F %d, H %d, K %d, d %d, V %d", params->model,
             model->spec.family->model_type, model->spec.n_layers, model->spec.d_model, model->spec.d_ffn,
             model->spec.n_heads, model->spec.n_kv_heads, model->spec.d_head, model->spec.n_vocab);
    *out = model;
    return LS_OK;
fail:
    ls_model_close(&model);
    return st;
}

void ls_model_close(ls_model **model) {
    if (*model == NULL) {
        return;
    }
#ifdef LS_CUDA
    cuda_start_end(&(*model)->start);
#endif
    tokenizer_close(&(*model)->tokenizer);
    checkpoint_close(&(*model)->checkpoint);
    free((*model)->folder);
    free(*model);
    *model = NULL;
}

ls_status ls_model_get_info(const ls_model *model, ls_model_info *out, ls_error *err) {
    TRY(check_struct_size("ls_model_info", out->struct_size, SIZE_MAX, err));
    const ls_spec *spec = &model->spec;
    const ls_generation_defaults *d = &model->defaults;
    ls_model_info info = {
        .struct_size = out->struct_size,
        .family = spec->family->model_type,
        .n_layers = spec->n_layers,
        .d_model = spec->d_model,
        .d_ffn = spec->d_ffn,
        .n_heads = spec->n_heads,
        .n_kv_heads = spec->n_kv_heads,
        .d_head = spec->d_head,
        .n_vocab = spec->n_vocab,
        .max_position_tokens = spec->max_position_tokens,
        .window_tokens = spec->window_tokens,
        .tied = spec->tied,
        .has_tokenizer = model->tokenizer != NULL,
        .dtype = spec->dtype,
        .temperature = d->has_temperature ? d->temperature : 1.0,
        .top_p = d->has_top_p ? d->top_p : 1.0,
        .top_k = d->has_top_k ? (int)d->top_k : 0,
        .min_p = d->has_min_p ? d->min_p : 0.0,
        .repetition_penalty = d->has_repetition_penalty ? d->repetition_penalty : 1.0,
    };
    memcpy(out, &info, out->struct_size < sizeof info ? out->struct_size : sizeof info);
    return LS_OK;
}
