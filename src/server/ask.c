/*
 * What a request asks of the engine: the fields of /v1/chat/completions and /v1/completions that are not the prompt.
 *
 * Fields that we do not know are ignored, as OpenAI's API does. Fields that we know and do not have are refused by name:
 * whoever asks for a schema must not get an answer that happens to be without one.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "server/serving.h"

/* ---- What we do not have ---- */

static ls_status refuse_unsupported(ask *a, ls_error *err) {
    static const char tools[] = "tool calls are not supported yet", schema[] = "structured output is not supported yet";
    static const struct {
        const char *name, *why;
    } unsupported[] = {
        {"tools", tools},
        {"functions", tools},
        {"structured_outputs", schema},
        {"guided_json", schema},
        {"guided_regex", schema},
        {"guided_choice", schema},
        {"guided_grammar", schema},
        {"audio", "audio is not supported"},
        {"web_search_options", "there is no search here"},
        {"use_beam_search", "beam search is not supported"},
        {"suffix", "text cannot be inserted before a suffix"},
        {"chat_template", "the model's own template is used; chat_template_kwargs are passed to it"},
        {"documents", "pass them in chat_template_kwargs if the template reads them"},
        {"continue_final_message", "not supported: use /v1/completions with the text so far"},
        {"prompt_embeds", "prompts are text or token ids"},
        {"return_token_ids", "not supported: /tokenize gives a text's ids"},
        {"return_tokens_as_token_ids", "not supported: /tokenize gives a text's ids"},
        {"logits_processors", "nothing is executed here"},
        {"thinking_token_budget", "not supported yet"},
        {"cache_salt", "not supported: --no-enable-prefix-caching keeps requests apart"},
    };
    for (size_t i = 0; i < sizeof unsupported / sizeof *unsupported; i++) {
        TRY(fields_refuse(&a->body, unsupported[i].name, unsupported[i].why, err));
    }
    static const char *const choices[] = {"tool_choice", "function_call"};
    for (size_t i = 0; i < 2; i++) {
        const json_t *value = fields_find(&a->body, choices[i]);
        bool is_none = json_is_string(value) &&
                       (strcmp(json_string_value(value), "none") == 0 || strcmp(json_string_value(value), "auto") == 0);
        if (!is_none) { /* without tools, auto is none */
            TRY(fields_refuse(&a->body, choices[i], tools, err));
        }
    }
    json_t *format = NULL;
    TRY(fields_object(&a->body, "response_format", &format, err));
    const char *type = json_string_value(json_object_get(format, "type"));
    if (format != NULL && (type == NULL || strcmp(type, "text") != 0)) {
        return fields_error(&a->body, "response_format", LS_EUNSUPPORTED, err, "%s", schema);
    }
    bool skip = true;
    TRY(fields_bool(&a->body, "skip_special_tokens", &skip, err));
    return skip ? LS_OK
                : fields_error(&a->body, "skip_special_tokens", LS_EUNSUPPORTED, err,
                               "false is not supported: special tokens are never part of the text");
}

static ls_status refuse_modalities(ask *a, ls_error *err) {
    json_t *modalities = NULL;
    TRY(fields_array(&a->body, "modalities", &modalities, err));
    for (size_t i = 0; i < json_array_size(modalities); i++) {
        const char *one = json_string_value(json_array_get(modalities, i));
        if (one == NULL || strcmp(one, "text") != 0) {
            return fields_error(&a->body, "modalities", LS_EUNSUPPORTED, err, "only \"text\" is supported");
        }
    }
    return LS_OK;
}

/* ---- Sampling ---- */

static ls_status read_bias(ask *a, ls_error *err) {
    json_t *map = NULL, *value;
    const char *key;
    TRY(fields_object(&a->body, "logit_bias", &map, err));
    if (map == NULL) {
        return LS_OK;
    }
    a->bias = calloc(json_object_size(map) + 1, sizeof *a->bias);
    if (a->bias == NULL) {
        return error_set(err, LS_ENOMEM, "logit_bias: out of memory");
    }
    json_object_foreach(map, key, value) {
        char *end;
        errno = 0;
        long long id = strtoll(key, &end, 10);
        if (end == key || *end != '\0' || errno != 0 || id < 0 || id > INT32_MAX) {
            return fields_error(&a->body, "logit_bias", LS_EINVAL, err, "\"%.40s\" is no token id", key);
        }
        double bias = json_number_value(value);
        if (!json_is_number(value) || !(bias >= -100 && bias <= 100)) {
            return fields_error(&a->body, "logit_bias", LS_EINVAL, err, "token %lld: must be a number from -100 to 100",
                                id);
        }
        a->bias[a->params.n_logit_bias++] = (ls_logit_bias){(int32_t)id, (float)bias};
    }
    a->params.logit_bias = a->bias;
    return LS_OK;
}

static ls_status at_most(ask *a, const char *name, size_t n, size_t most, ls_error *err) {
    return n <= most ? LS_OK
                     : fields_error(&a->body, name, LS_EINVAL, err, "%zu of them; at most %zu are taken", n, most);
}

/* What other servers take for the most probable token: a temperature next to 0, a top_p of 0. */
static void take_as_greedy(ask *a) {
    ls_request_params *p = &a->params;
    if (p->temperature > 0 && p->temperature < 1e-3) {
        p->temperature = 0;
    }
    if (p->top_p == 0) {
        p->top_p = 1;
        p->top_k = 1;
    }
}

static ls_status read_filters(ask *a, ls_error *err) {
    fields *f = &a->body;
    ls_request_params *p = &a->params;
    int64_t top_k = p->top_k;
    TRY(fields_real(f, "temperature", 0, 100, &p->temperature, err));
    TRY(fields_int(f, "top_k", -1, INT32_MAX, &top_k, err));
    if (fields_find(f, "top_k") != NULL) {
        p->top_k = top_k > 0 ? (int)top_k : 0;
    }
    TRY(fields_real(f, "top_p", 0, 1, &p->top_p, err));
    take_as_greedy(a);
    TRY(fields_real(f, "min_p", 0, 1, &p->min_p, err));
    TRY(fields_real(f, "repetition_penalty", 0.01, 100, &p->repetition_penalty, err));
    TRY(fields_real(f, "presence_penalty", -2, 2, &p->presence_penalty, err));
    TRY(fields_real(f, "frequency_penalty", -2, 2, &p->frequency_penalty, err));
    TRY(read_bias(a, err));
    TRY(fields_ids(f, "allowed_token_ids", &a->allowed, &p->n_allowed_tokens, err));
    TRY(fields_strings(f, "bad_words", &a->bad_words, &p->n_bad_words, err));
    TRY(at_most(a, "bad_words", p->n_bad_words, ASK_MAX_WORDS, err));
    p->allowed_tokens = a->allowed;
    p->bad_words = a->bad_words;
    return LS_OK;
}

static ls_status read_ends(ask *a, ls_error *err) {
    fields *f = &a->body;
    ls_request_params *p = &a->params;
    int64_t min_tokens = 0;
    TRY(fields_int(f, "max_tokens", -1, INT32_MAX, &a->max_tokens, err));
    if (a->is_chat) {
        TRY(fields_int(f, "max_completion_tokens", -1, INT32_MAX, &a->max_tokens, err));
    }
    TRY(fields_int(f, "min_tokens", 0, INT32_MAX, &min_tokens, err));
    p->min_tokens = (int)min_tokens;
    TRY(fields_strings(f, "stop", &a->stop, &p->n_stop, err));
    TRY(fields_ids(f, "stop_token_ids", &a->stop_ids, &p->n_stop_tokens, err));
    TRY(at_most(a, "stop_token_ids", p->n_stop_tokens, ASK_MAX_WORDS, err));
    p->stop = a->stop;
    p->stop_tokens = a->stop_ids;
    TRY(fields_bool(f, "include_stop_str_in_output", &p->include_stop, err));
    return fields_bool(f, "ignore_eos", &p->ignore_eos, err);
}

/* A request without a seed gets one of its own. */
static ls_status read_seed(ask *a, ls_error *err) {
    int64_t seed;
    if (getrandom(&seed, sizeof seed, GRND_NONBLOCK) != sizeof seed) {
        seed = now_us();
    }
    TRY(fields_int(&a->body, "seed", INT64_MIN, INT64_MAX, &seed, err));
    a->params.seed = (uint64_t)seed;
    return LS_OK;
}

static ls_status read_counts(ask *a, ls_error *err) {
    TRY(fields_int(&a->body, "n", 1, ASK_MAX_CHOICES, &a->n, err));
    int64_t best_of = a->n;
    TRY(fields_int(&a->body, "best_of", 1, ASK_MAX_CHOICES, &best_of, err));
    if (best_of != a->n) {
        return fields_error(&a->body, "best_of", LS_EUNSUPPORTED, err, "only the value of n is supported");
    }
    return LS_OK;
}

/* ---- What comes back ---- */

static ls_status read_logprobs(ask *a, ls_error *err) {
    fields *f = &a->body;
    int64_t n = -1, n_prompt = -1;
    if (a->is_chat) {
        TRY(fields_bool(f, "logprobs", &a->logprobs, err));
        TRY(fields_int(f, "top_logprobs", 0, LS_MAX_LOGPROBS, &n, err));
        if (n > 0 && !a->logprobs) {
            return fields_error(f, "top_logprobs", LS_EINVAL, err, "needs \"logprobs\": true");
        }
        n = !a->logprobs ? -1 : n < 0 ? 0 : n;
    } else {
        TRY(fields_int(f, "logprobs", 0, LS_MAX_LOGPROBS, &n, err));
        a->logprobs = n >= 0;
    }
    TRY(fields_int(f, "prompt_logprobs", 0, LS_MAX_LOGPROBS, &n_prompt, err));
    if (n_prompt >= 0 && a->stream) {
        return fields_error(f, "prompt_logprobs", LS_EINVAL, err, "cannot be streamed");
    }
    a->params.logprobs = (int)n;
    a->prompt_logprobs = n_prompt >= 0;
    a->params.prompt_logprobs = a->echo && a->logprobs && n > n_prompt ? (int)n : (int)n_prompt;
    return LS_OK;
}

static ls_status read_stream(ask *a, ls_error *err) {
    json_t *options = NULL;
    TRY(fields_bool(&a->body, "stream", &a->stream, err));
    TRY(fields_object(&a->body, "stream_options", &options, err));
    if (options == NULL) {
        return LS_OK;
    }
    if (!a->stream) {
        return fields_error(&a->body, "stream_options", LS_EINVAL, err, "needs \"stream\": true");
    }
    fields inner = {.object = options};
    ls_status st = fields_bool(&inner, "include_usage", &a->include_usage, err);
    st = st == LS_OK ? fields_bool(&inner, "continuous_usage_stats", &a->usage_each, err) : st;
    a->body.param = st == LS_OK ? NULL : "stream_options";
    return st;
}

static ls_status check_model(ask *a, const server *s, ls_error *err) {
    const server_params *p = s->params;
    const char *model = p->name[0];
    TRY(fields_string(&a->body, "model", &model, err));
    for (size_t i = 0; i < p->n_names; i++) {
        if (strcmp(p->name[i], model) == 0) {
            return LS_OK;
        }
    }
    a->body.param = "model";
    return error_set(err, LS_ENOTFOUND, "there is no model '%.200s' here; /v1/models lists what there is", model);
}

/* -1: as many as leave room for the answer. */
static ls_status read_truncate(ask *a, const server *s, ls_error *err) {
    TRY(fields_int(&a->body, "truncate_prompt_tokens", -1, INT32_MAX, &a->truncate, err));
    if (a->truncate == 0) {
        return fields_error(&a->body, "truncate_prompt_tokens", LS_EINVAL, err, "0 would leave no prompt");
    }
    if (a->truncate < 0 && fields_find(&a->body, "truncate_prompt_tokens") != NULL) {
        const int64_t answer = a->max_tokens > 0 ? a->max_tokens : 1;
        a->truncate = answer < s->max_tokens ? s->max_tokens - answer : 1;
    }
    return LS_OK;
}

ls_status ask_read(ask *a, const server *s, const json_t *body, bool is_chat, ls_error *err) {
    *a = (ask){.body = {.object = body},
               .params = LS_REQUEST_PARAMS_INIT,
               .n = 1,
               .max_tokens = is_chat ? -1 : 16,
               .truncate = -1,
               .is_chat = is_chat,
               .add_special = !is_chat};
    TRY(check_model(a, s, err));
    TRY(refuse_unsupported(a, err));
    TRY(refuse_modalities(a, err));
    TRY(read_counts(a, err));
    TRY(read_stream(a, err));
    TRY(fields_bool(&a->body, "echo", &a->echo, err));
    if (is_chat && a->echo) {
        return fields_error(&a->body, "echo", LS_EUNSUPPORTED, err, "not supported in a chat");
    }
    TRY(read_filters(a, err));
    TRY(read_ends(a, err));
    TRY(read_seed(a, err));
    TRY(read_logprobs(a, err));
    TRY(fields_bool(&a->body, "add_special_tokens", &a->add_special, err));
    int64_t priority = 0;
    TRY(fields_int(&a->body, "priority", INT32_MIN, INT32_MAX, &priority, err));
    a->params.priority = (int32_t)priority;
    return read_truncate(a, s, err);
}

/* ---- Prompts ---- */

static ls_status keep_echo(ask *a, const server *s, ask_prompt *prompt, ls_error *err) {
    if (!a->echo || s->model.text == NULL) {
        return LS_OK;
    }
    return ls_text_decode(s->model.text, prompt->id, prompt->n, false, &prompt->echo, &prompt->echo_bytes, err);
}

ls_status ask_add_ids(ask *a, const server *s, int32_t *id, size_t n, ls_error *err) {
    ask_prompt *grown = realloc(a->prompt, (a->n_prompts + 1) * sizeof *grown);
    if (grown == NULL || a->n_prompts == ASK_MAX_PROMPTS) {
        a->prompt = grown != NULL ? grown : a->prompt;
        free(id);
        return grown == NULL ? error_set(err, LS_ENOMEM, "prompt: out of memory")
                             : fields_error(&a->body, "prompt", LS_EINVAL, err, "at most %d at once", ASK_MAX_PROMPTS);
    }
    if (n == 0) {
        free(id);
        a->prompt = grown;
        return fields_error(&a->body, a->is_chat ? "messages" : "prompt", LS_EINVAL, err,
                            "empty: there is nothing to continue");
    }
    if (a->truncate > 0 && n > (size_t)a->truncate) {
        memmove(id, id + (n - (size_t)a->truncate), (size_t)a->truncate * sizeof *id);
        n = (size_t)a->truncate;
    }
    a->prompt = grown;
    a->prompt[a->n_prompts++] = (ask_prompt){.id = id, .n = n};
    return keep_echo(a, s, &a->prompt[a->n_prompts - 1], err);
}

ls_status ask_add_text(ask *a, const server *s, const char *text, size_t n_bytes, bool add_special, ls_error *err) {
    ls_token *token = NULL;
    size_t n = n_bytes, least = n_bytes / s->longest_token_bytes;
    if (a->truncate < 0 && least > (size_t)s->max_tokens) { /* seen before the time to tokenize it is spent */
        return fields_error(&a->body, a->is_chat ? "messages" : "prompt", LS_ETOOLONG, err,
                            "%zu bytes are at least %zu tokens, more than the context of %d", n_bytes, least,
                            s->max_tokens);
    }
    if (s->model.text != NULL) {
        unsigned flags = LS_ENCODE_PARSE_SPECIAL | (add_special ? LS_ENCODE_ADD_SPECIAL : 0);
        TRY(ls_text_encode(s->model.text, text, n_bytes, flags, &token, &n, err));
    }
    int32_t *id = malloc((n + 1) * sizeof *id);
    for (size_t i = 0; id != NULL && i < n; i++) { /* a model without a tokenizer takes bytes, as `generate` does */
        id[i] = token != NULL ? token[i].id : (uint8_t)text[i] % s->info.n_vocab;
    }
    ls_free(token);
    return id != NULL ? ask_add_ids(a, s, id, n, err) : error_set(err, LS_ENOMEM, "prompt: out of memory");
}

void ask_drop_body(ask *a) {
    free(a->stop);
    free(a->bad_words);
    a->stop = a->bad_words = NULL;
    a->params.stop = a->params.bad_words = NULL;
    a->body = (fields){0};
}

void ask_deinit(ask *a) {
    ask_drop_body(a);
    for (size_t i = 0; i < a->n_prompts; i++) {
        free(a->prompt[i].id);
        ls_free(a->prompt[i].echo);
    }
    free(a->prompt);
    free(a->bias);
    free(a->allowed);
    free(a->stop_ids);
    *a = (ask){0};
}
