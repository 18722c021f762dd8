/* Log probabilities of a request's tokens: room for all is made when it is submitted, steps fill it. */
#include <math.h>
#include <stdlib.h>

#include "engine/engine.h"

_Static_assert((int)LS_MAX_LOGPROBS == (int)LS_SAMPLE_TOP, "ranks offer as many as callers may ask for");

bool wants_logprobs(const ls_request *request, int index) {
    return index < request->n_prompt ? index > 0 && request->params.prompt_logprobs >= 0
                                     : request->params.logprobs >= 0;
}

ls_status logprobs_reserve(ls_request *request, ls_error *err) {
    const ls_request_params *p = &request->params;
    if (p->logprobs < -1 || p->logprobs > LS_MAX_LOGPROBS || p->prompt_logprobs < -1 ||
        p->prompt_logprobs > LS_MAX_LOGPROBS) {
        return error_set(err, LS_EINVAL, "%s %d: must be from 0 to %d, or -1 for none",
                         p->logprobs < -1 || p->logprobs > LS_MAX_LOGPROBS ? "logprobs" : "prompt_logprobs",
                         p->logprobs < -1 || p->logprobs > LS_MAX_LOGPROBS ? p->logprobs : p->prompt_logprobs,
                         LS_MAX_LOGPROBS);
    }
    request->logprobs_first = p->prompt_logprobs >= 0 ? 0 : request->n_prompt;
    request->logprobs_end = p->logprobs >= 0 ? request->token_capacity : request->n_prompt;
    int n = request->logprobs_end - request->logprobs_first;
    if (n <= 0) {
        return LS_OK;
    }
    request->logprobs = calloc((size_t)n, sizeof *request->logprobs);
    return request->logprobs != NULL ? LS_OK : error_set(err, LS_ENOMEM, "request: out of memory");
}

void logprobs_store(ls_request *request, const sampler_row *row, int index, int32_t token) {
    ls_candidate top[LS_MAX_LOGPROBS];
    ls_logprobs *out = &request->logprobs[index - request->logprobs_first];
    int n = index < request->n_prompt ? request->params.prompt_logprobs : request->params.logprobs;
    out->logprob = sampler_logprob(row, token, &out->rank);
    out->n_top = sampler_top_logprobs(row, n, top);
    for (int i = 0; i < out->n_top; i++) {
        out->top[i].token = top[i].id;
        out->top[i].logprob = top[i].z;
    }
}

static ls_status get_logprobs(const ls_request *request, size_t index, ls_logprobs *out, ls_error *err) {
    if (request->logprobs == NULL || index < (size_t)request->logprobs_first ||
        index >= (size_t)request->logprobs_end) {
        return error_set(err, LS_EINVAL, "token %zu: log probabilities were not asked for (%s)", index,
                         index < (size_t)request->n_prompt ? "prompt_logprobs" : "logprobs");
    }
    int known = index < (size_t)request->n_prompt ? request->n_logits_seen + 1 : request->n_tokens;
    if (index > 0 && index >= (size_t)known) {
        return error_set(err, LS_EINVAL, "token %zu is not there yet", index);
    }
    *out = request->logprobs[index - (size_t)request->logprobs_first];
    if (index == 0) {
        *out = (ls_logprobs){.logprob = NAN}; /* nothing comes before it */
    }
    return LS_OK;
}

ls_status ls_request_get_logprobs(ls_request *request, size_t index, ls_logprobs *out, ls_error *err) {
    pthread_mutex_lock(&request->engine->lock);
    ls_status st = get_logprobs(request, index, out, err);
    pthread_mutex_unlock(&request->engine->lock);
    return st;
}
