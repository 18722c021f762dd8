/* What a caller asks of a request: checked, completed with the model's defaults, copied. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/engine.h"

/* ---- The prompt ---- */

ls_status request_read_prompt(const ls_model *model, const ls_request_params *p, token_list *out, ls_error *err) {
    if (p->prompt_tokens != NULL) {
        for (size_t i = 0; i < p->n_prompt_tokens; i++) {
            TRY(token_list_push(out, p->prompt_tokens[i], err));
        }
    } else if (p->prompt == NULL) {
        return error_set(err, LS_EINVAL, "a request needs prompt or prompt_tokens");
    } else if (model->tokenizer != NULL) {
        TRY(tokenizer_encode(model->tokenizer, p->prompt, p->prompt_bytes,
                             TOKENIZER_PARSE_SPECIAL | TOKENIZER_ADD_SPECIAL, out, err));
    } else {
        for (size_t i = 0; i < p->prompt_bytes; i++) {
            TRY(token_list_push(out, (uint8_t)p->prompt[i] % model->spec.n_vocab, err));
        }
    }
    if (out->n == 0) {
        return error_set(err, LS_EINVAL, "empty prompt: there is nothing to continue");
    }
    for (size_t i = 0; i < out->n; i++) {
        if (out->id[i] < 0 || out->id[i] >= model->spec.n_vocab) {
            return error_set(err, LS_EINVAL, "prompt token %zu has id %d; the model's vocabulary ends at %d", i,
                             out->id[i], model->spec.n_vocab - 1);
        }
    }
    return LS_OK;
}

static ls_status check_length(const ls_engine *engine, size_t n_prompt, int max_tokens, ls_error *err) {
    if (max_tokens < 0) {
        return error_set(err, LS_EINVAL, "max_tokens %d: must not be negative", max_tokens);
    }
    int64_t total = (int64_t)n_prompt + max_tokens;
    if (total > engine->config.max_len) {
        return error_set(
            err, LS_ETOOLONG,
            "prompt of %zu tokens and max_tokens %d make %lld, more than the context of %d tokens "
            "(--max-model-len): shorten the prompt or ask for at most %lld",
            n_prompt, max_tokens, (long long)total, engine->config.max_len,
            (long long)(n_prompt < (size_t)engine->config.max_len ? engine->config.max_len - (int64_t)n_prompt : 0));
    }
    if (pages_for(total) > engine->config.n_pages) {
        return error_set(
            err, LS_ETOOLONG,
            "prompt of %zu tokens and max_tokens %d make %lld, more than the KV cache holds (%lld tokens): "
            "raise --kv-cache-memory-bytes",
            n_prompt, max_tokens, (long long)total, (long long)engine->config.n_pages * LS_PAGE_TOKENS);
    }
    return LS_OK;
}

/* ---- Sampling ---- */

static ls_status read_filters(ls_request *request, ls_error *err) {
    const ls_model *model = request->engine->model;
    const ls_request_params *p = &request->params;
    const ls_generation_defaults *d = &model->defaults;
    double temperature = !(p->temperature < 0) ? p->temperature : d->has_temperature ? d->temperature : 1.0;
    int64_t top_k = p->top_k >= 0 ? p->top_k : d->has_top_k ? d->top_k : 0;
    double top_p = !(p->top_p < 0) ? p->top_p : d->has_top_p ? d->top_p : 1.0; /* NaN is no default */
    double min_p = !(p->min_p < 0) ? p->min_p : d->has_min_p ? d->min_p : 0.0;
    if (!(temperature <= 100) || (temperature > 0 && temperature < 1e-3)) {
        return error_set(err, LS_EINVAL, "temperature %g: must be 0 (greedy) or from 0.001 to 100", temperature);
    }
    if (!(top_p > 0 && top_p <= 1)) {
        return error_set(err, LS_EINVAL, "top_p %g: must be more than 0 and at most 1", top_p);
    }
    if (!(min_p >= 0 && min_p <= 1)) {
        return error_set(err, LS_EINVAL, "min_p %g: must be from 0 to 1", min_p);
    }
    request->sample = (ls_sample_params){.temperature = (float)temperature,
                                         .top_k = top_k < model->spec.n_vocab ? (int32_t)top_k : 0,
                                         .top_p = (float)top_p,
                                         .min_p = (float)min_p,
                                         .seed = p->seed,
                                         .choice = p->choice,
                                         .n_top = p->logprobs};
    return LS_OK;
}

static int by_id(const void *a, const void *b) {
    const int32_t *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

/* A sorted copy of ids without doubles. */
static ls_status copy_ids(const char *name, const int32_t *id, size_t n, int n_vocab, int32_t **out, int32_t *n_out,
                          ls_error *err) {
    for (size_t i = 0; i < n; i++) {
        if (id[i] < 0 || id[i] >= n_vocab) {
            return error_set(err, LS_EINVAL, "%s: token id %d; the model's vocabulary ends at %d", name, id[i],
                             n_vocab - 1);
        }
    }
    int32_t *copy = malloc((n + 1) * sizeof *copy);
    if (copy == NULL) {
        return error_set(err, LS_ENOMEM, "request: out of memory");
    }
    memcpy(copy, id, n * sizeof *copy);
    qsort(copy, n, sizeof *copy, by_id);
    int32_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        if (kept == 0 || copy[kept - 1] != copy[i]) {
            copy[kept++] = copy[i];
        }
    }
    *out = copy;
    *n_out = kept;
    return LS_OK;
}

/* Tokens that stop it: the caller's, and the model's unless they are to be ignored. */
static ls_status read_ending(ls_request *request, ls_error *err) {
    const ls_model *model = request->engine->model;
    const ls_request_params *p = &request->params;
    const int32_t *eos = model->defaults.n_eos > 0 ? model->defaults.eos : model->spec.eos;
    int n_eos = p->ignore_eos ? 0 : model->defaults.n_eos > 0 ? model->defaults.n_eos : model->spec.n_eos;
    token_list ids = {0};
    ls_status st = LS_OK;
    int32_t n_ending = 0;
    for (size_t i = 0; i < p->n_stop_tokens; i++) {
        TRY_GOTO(token_list_push(&ids, p->stop_tokens[i], err), fail);
    }
    for (int i = 0; i < n_eos; i++) {
        TRY_GOTO(token_list_push(&ids, eos[i], err), fail);
    }
    if (ids.n > 0) {
        TRY_GOTO(copy_ids("stop_token_ids", ids.id, ids.n, model->spec.n_vocab, &request->ending, &n_ending, err),
                 fail);
    }
    request->n_ending = n_ending;
fail:
    token_list_deinit(&ids);
    return st;
}

static ls_status read_sampling(ls_request *request, ls_error *err) {
    const ls_model *model = request->engine->model;
    const ls_request_params *p = &request->params;
    const ls_generation_defaults *d = &model->defaults;
    double repetition = p->repetition_penalty > 0   ? p->repetition_penalty
                        : d->has_repetition_penalty ? d->repetition_penalty
                                                    : 1.0;
    TRY(read_filters(request, err));
    if (p->min_tokens < 0 || p->min_tokens > p->max_tokens) {
        return error_set(err, LS_EINVAL, "min_tokens %d: must be from 0 to max_tokens, %d", p->min_tokens,
                         p->max_tokens);
    }
    TRY(read_ending(request, err));
    TRY(logit_edits_init(&request->edits, p, repetition, request->ending, request->n_ending, model->tokenizer,
                         model->spec.n_vocab, request->token_capacity, err));
    if (p->allowed_tokens != NULL) {
        if (p->n_allowed_tokens == 0) {
            return error_set(err, LS_EINVAL, "allowed_token_ids: the list is empty, so that no token could be drawn");
        }
        TRY(copy_ids("allowed_token_ids", p->allowed_tokens, p->n_allowed_tokens, model->spec.n_vocab,
                     &request->allowed, &request->sample.n_allowed, err));
        request->sample.allowed = request->allowed;
    }
    return LS_OK;
}

/* ---- Text ---- */

static ls_status copy_stops(ls_request *request, ls_error *err) {
    const ls_request_params *p = &request->params;
    request->stop = calloc(p->n_stop + 1, sizeof *request->stop);
    for (size_t i = 0; request->stop != NULL && i < p->n_stop; i++) {
        request->stop[i] = strdup(p->stop[i]);
        if (request->stop[i] == NULL) {
            break;
        }
        request->n_stop++;
    }
    return request->n_stop == p->n_stop && request->stop != NULL ? LS_OK
                                                                 : error_set(err, LS_ENOMEM, "request: out of memory");
}

/* Decoders that stand where the answer begins: the first word of an answer keeps its space, which a decoder at the start
 * of a text would strip. What the prompt decodes to is dropped. */
static ls_status begin_answer(ls_request *request, ls_error *err) {
    const ls_tokenizer *tokenizer = request->engine->model->tokenizer;
    detokenizer stream;
    detokenizer_init(&stream, tokenizer, true);
    for (int i = 0; tokenizer != NULL && i < request->n_prompt; i++) {
        TRY(detokenizer_push(&stream, request->token[i], &request->text, err));
        request->text.n = 0;
    }
    TRY(answer_init(&request->live, &stream, &request->params, err));
    TRY(answer_init(&request->view, &stream, &request->params, err));
    TRY(copy_stops(request, err));
    request->watched = request->params.on_text != NULL || request->n_stop > 0;
    return text_buffer_append(&request->text, "", 0, err);
}

/* ---- The whole ---- */

static ls_status check_reuse(const ls_request *request, ls_error *err) {
    const ls_request *from = request->params.reuse;
    if (from != NULL && from->engine != request->engine) {
        return error_set(err, LS_EINVAL, "reuse: that request belongs to another engine");
    }
    return LS_OK;
}

ls_status request_read_params(ls_request *request, const token_list *prompt, ls_error *err) {
    ls_request_params *p = &request->params;
    TRY(check_length(request->engine, prompt->n, p->max_tokens, err));
    TRY(check_reuse(request, err));
    request->n_prompt = request->n_tokens = (int)prompt->n;
    request->token_capacity = request->n_prompt + p->max_tokens;
    request->token = malloc((size_t)request->token_capacity * sizeof *request->token);
    request->page = malloc((size_t)pages_for(request->token_capacity) * sizeof *request->page);
    if (request->token == NULL || request->page == NULL) {
        return error_set(err, LS_ENOMEM, "request: out of memory");
    }
    memcpy(request->token, prompt->id, prompt->n * sizeof *prompt->id);
    TRY(read_sampling(request, err));
    for (int i = 0; i < request->n_prompt; i++) {
        logit_edits_push(&request->edits, request->token[i], false);
    }
    request->sample.edit = request->edits.edit;
    TRY(begin_answer(request, err));
    TRY(logprobs_reserve(request, err));
    p->prompt = NULL;
    p->prompt_tokens = p->allowed_tokens = p->stop_tokens = NULL;
    p->logit_bias = NULL;
    p->bad_words = p->stop = NULL;
    return LS_OK;
}
