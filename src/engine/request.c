/* Requests: submitting, results, the end of one. The public functions are described in lockstep.h. */
#include <stdlib.h>

#include "base/clock.h"
#include "engine/engine.h"

const char *ls_finish_name(ls_finish finish) {
    static const char *const names[] = {"running", "stop", "length", "error", "cancelled"};
    return (unsigned)finish < sizeof names / sizeof *names ? names[finish] : "unknown";
}

/* ---- Submitting ---- */

static ls_status read_sampling(ls_request *request, ls_error *err) {
    const ls_model *model = request->engine->model;
    const ls_request_params *p = &request->params;
    const ls_generation_defaults *d = &model->defaults;
    double temperature = !(p->temperature < 0) ? p->temperature : d->has_temperature ? d->temperature : 1.0;
    int64_t top_k = p->top_k >= 0 ? p->top_k : d->has_top_k ? d->top_k : 0;
    double top_p = !(p->top_p < 0) ? p->top_p : d->has_top_p ? d->top_p : 1.0; /* NaN is no default */
    if (!(temperature <= 100) || (temperature > 0 && temperature < 1e-3)) {
        return error_set(err, LS_EINVAL, "temperature %g: must be 0 (greedy) or from 0.001 to 100", temperature);
    }
    if (!(top_p > 0 && top_p <= 1)) {
        return error_set(err, LS_EINVAL, "top_p %g: must be more than 0 and at most 1", top_p);
    }
    request->sample = (ls_sample_params){.temperature = (float)temperature,
                                         .top_k = top_k < model->spec.n_vocab ? (int32_t)top_k : 0,
                                         .top_p = (float)top_p,
                                         .seed = p->seed};
    return LS_OK;
}

static ls_status read_prompt(const ls_model *model, const ls_request_params *p, token_list *out, ls_error *err) {
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

/* A decoder that stands where the answer begins: the first word of an answer keeps its space, which a decoder at the start
 * of a text would strip. What the prompt decodes to is dropped. */
static ls_status begin_answer(const ls_request *request, detokenizer *stream, text_buffer *scratch, ls_error *err) {
    const ls_tokenizer *tokenizer = request->engine->model->tokenizer;
    detokenizer_init(stream, tokenizer, true);
    for (int i = 0; tokenizer != NULL && i < request->n_prompt; i++) {
        TRY(detokenizer_push(stream, request->token[i], scratch, err));
        scratch->n = 0;
    }
    return LS_OK;
}

static ls_status fill_request(ls_request *request, const token_list *prompt, ls_error *err) {
    request->n_prompt = request->n_tokens = (int)prompt->n;
    request->token_capacity = request->n_prompt + request->params.max_tokens;
    request->token = malloc((size_t)request->token_capacity * sizeof *request->token);
    request->page = malloc((size_t)pages_for(request->token_capacity) * sizeof *request->page);
    if (request->token == NULL || request->page == NULL) {
        return error_set(err, LS_ENOMEM, "request: out of memory");
    }
    memcpy(request->token, prompt->id, prompt->n * sizeof *prompt->id);
    TRY(begin_answer(request, &request->stream, &request->text, err));
    request->params.prompt = NULL;
    request->params.prompt_tokens = NULL;
    request->first_token_ns = -1;
    request->submitted_ns = clock_ns();
    return LS_OK;
}

ls_status ls_request_submit(ls_engine *engine, const ls_request_params *params, ls_request **out, ls_error *err) {
    TRY(check_struct_size("ls_request_params", params->struct_size, sizeof *params, err));
    TRY(engine_check_alive(engine, err));
    token_list prompt = {0};
    ls_request *request = calloc(1, sizeof *request);
    ls_status st = LS_OK;
    if (request == NULL) {
        return error_set(err, LS_ENOMEM, "request: out of memory");
    }
    request->engine = engine;
    memcpy(&request->params, params, params->struct_size);
    TRY_GOTO(read_sampling(request, err), fail);
    TRY_GOTO(read_prompt(engine->model, &request->params, &prompt, err), fail);
    TRY_GOTO(check_length(engine, prompt.n, request->params.max_tokens, err), fail);
    TRY_GOTO(fill_request(request, &prompt, err), fail);
    token_list_deinit(&prompt);
    request->next_of_engine = engine->requests;
    if (engine->requests != NULL) {
        engine->requests->prev_of_engine = request;
    }
    engine->requests = request;
    scheduler_add(engine, request);
    *out = request;
    return LS_OK;
fail:
    token_list_deinit(&prompt);
    request_destroy(request);
    return st;
}

/* ---- The end ---- */

void request_finish(ls_request *request, ls_finish finish) {
    request->finish = finish;
    scheduler_remove(request->engine, request);
}

void request_destroy(ls_request *request) {
    text_buffer_deinit(&request->text);
    free(request->token);
    free(request->page);
    free(request);
}

void ls_request_free(ls_request **request) {
    ls_request *gone = *request;
    if (gone == NULL) {
        return;
    }
    if (gone->state != REQUEST_FINISHED) {
        scheduler_remove(gone->engine, gone);
    }
    if (gone->prev_of_engine != NULL) {
        gone->prev_of_engine->next_of_engine = gone->next_of_engine;
    } else {
        gone->engine->requests = gone->next_of_engine;
    }
    if (gone->next_of_engine != NULL) {
        gone->next_of_engine->prev_of_engine = gone->prev_of_engine;
    }
    request_destroy(gone);
    *request = NULL;
}

/* ---- Results ---- */

/* The whole answer is decoded when somebody asks for it, so that steps need not grow a buffer. */
static ls_status decode_answer(ls_request *request, ls_error *err) {
    detokenizer stream;
    request->text.n = 0;
    TRY(begin_answer(request, &stream, &request->text, err));
    TRY(text_buffer_append(&request->text, "", 0, err));
    if (request->engine->model->tokenizer == NULL) {
        return LS_OK;
    }
    for (int i = request->n_prompt; i < request->n_tokens; i++) {
        TRY(detokenizer_push(&stream, request->token[i], &request->text, err));
    }
    return request->finish == LS_FINISH_NONE ? LS_OK : detokenizer_flush(&stream, &request->text, err);
}

ls_status ls_request_get_result(ls_request *request, ls_result *out, ls_error *err) {
    TRY(check_struct_size("ls_result", out->struct_size, SIZE_MAX, err));
    TRY(decode_answer(request, err));
    ls_result result = {
        .struct_size = out->struct_size,
        .finish = request->finish,
        .tokens = request->token,
        .n_prompt_tokens = (size_t)request->n_prompt,
        .n_tokens = (size_t)request->n_tokens,
        .text = request->text.data,
        .text_bytes = request->text.n,
        .logits_hash = request->logits_hash,
        .status = request->error.status,
        .error = request->error.text,
        .first_token_us = request->first_token_ns < 0 ? -1 : (request->first_token_ns - request->submitted_ns) / 1000,
    };
    memcpy(out, &result, out->struct_size < sizeof result ? out->struct_size : sizeof result);
    return LS_OK;
}
