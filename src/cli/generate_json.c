/* lockstep generate --json: an object for each answer, then one with the timeline and the seed. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>

#include "base/json.h"
#include "cli/generate.h"
#include "cli/timeline.h"

static ls_status print_json(json_t *object, FILE *out, ls_error *err) {
    if (object == NULL) {
        return error_set(err, LS_ENOMEM, "cannot write JSON: out of memory");
    }
    json_dumpf(object, out, JSON_COMPACT | JSON_REAL_PRECISION(9));
    fputc('\n', out);
    json_decref(object);
    return LS_OK;
}

/* JSON has no infinities and no NaN. */
static json_t *json_finite(float value) {
    return isfinite(value) ? json_real((double)value) : json_null();
}

/* The log probabilities of tokens [first, last). *out is a new reference. */
static ls_status logprobs_json(ls_request *request, const ls_result *result, size_t first, size_t last, json_t **out,
                               ls_error *err) {
    json_t *list = json_array();
    for (size_t i = first; i < last; i++) {
        ls_logprobs entry;
        ls_status st = ls_request_get_logprobs(request, i, &entry, err);
        if (st != LS_OK) {
            json_decref(list);
            return st;
        }
        json_t *top = json_array();
        for (int k = 0; k < entry.n_top; k++) {
            json_array_append_new(top, json_pack("{s:i, s:o}", "token", entry.top[k].token, "logprob",
                                                 json_finite(entry.top[k].logprob)));
        }
        json_array_append_new(list, json_pack("{s:i, s:o, s:i, s:o}", "token", result->tokens[i], "logprob",
                                              json_finite(entry.logprob), "rank", entry.rank, "top", top));
    }
    *out = list;
    return LS_OK;
}

static ls_status add_logprobs(json_t *object, const generate *g, const answer *a, const ls_result *result,
                              ls_error *err) {
    json_t *list;
    if (g->options.value[OPT_PROMPT_LOGPROBS].set) {
        TRY(logprobs_json(a->request, result, 0, result->n_prompt_tokens, &list, err));
        json_object_set_new(object, "prompt_logprobs", list);
    }
    if (g->options.value[OPT_LOGPROBS].set) {
        TRY(logprobs_json(a->request, result, result->n_prompt_tokens, result->n_tokens, &list, err));
        json_object_set_new(object, "logprobs", list);
    }
    return LS_OK;
}

/* What ended the answer: a stop string, a token, or null. */
static json_t *stop_reason(const ls_result *result) {
    if (result->finish != LS_FINISH_STOP) {
        return json_null();
    }
    return result->stop_string != NULL ? json_string(result->stop_string) : json_integer(result->stop_token);
}

ls_status generate_print_json(const generate *g, const answer *a, const ls_result *result, ls_error *err) {
    json_t *tokens = json_array();
    for (size_t i = result->n_prompt_tokens; i < result->n_tokens; i++) {
        json_array_append_new(tokens, json_integer(result->tokens[i]));
    }
    char hash[20];
    snprintf(hash, sizeof hash, "%016" PRIx64, result->logits_hash);
    json_t *echo = json_stringn(a->prompt->bytes, a->prompt->n_bytes);
    if (echo == NULL) {
        echo = json_null(); /* bytes that are not UTF-8 cannot stand in JSON */
    }
    json_t *object = json_pack("{s:o, s:I, s:s%, s:o, s:I, s:s, s:o, s:s}", "prompt", echo, "choice",
                               (json_int_t)a->choice, "text", result->text, result->text_bytes, "tokens", tokens,
                               "prompt_tokens", (json_int_t)result->n_prompt_tokens, "finish_reason",
                               ls_finish_name(result->finish), "stop_reason", stop_reason(result), "logits_hash", hash);
    if (object != NULL && result->finish == LS_FINISH_ERROR) {
        json_object_set_new(object, "error", json_string(result->error));
    }
    bool whole = result->finish == LS_FINISH_STOP || result->finish == LS_FINISH_LENGTH;
    ls_status st = object != NULL && whole ? add_logprobs(object, g, a, result, err) : LS_OK;
    if (st != LS_OK) {
        json_decref(object);
        return st;
    }
    return print_json(object, stdout, err);
}

ls_status generate_print_end_json(generate *g, FILE *out, ls_error *err) {
    ls_timeline timeline = LS_TIMELINE_INIT;
    TRY(ls_engine_get_timeline(g->engine, &timeline, err));
    return print_json(
        json_pack("{s:o, s:I}", "timeline", timeline_json(&timeline), "seed", (json_int_t)g->sampling.seed), out, err);
}
