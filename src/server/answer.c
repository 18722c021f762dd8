/* What a choice has come to, as the JSON of OpenAI's API with vLLM's additions (stop_reason, prompt_logprobs). */
#include <math.h>
#include <string.h>

#include "server/serving.h"

/* ---- Tokens ---- */

/* The text of one token; of what is no UTF-8 by itself, U+FFFD. */
static json_t *token_text(const server *s, int32_t id) {
    const char *bytes = "";
    size_t n = 0;
    if (s->model.text == NULL) {
        return json_sprintf(" %d", id);
    }
    ls_text_token_bytes(s->model.text, id, &bytes, &n);
    json_t *text = json_stringn(bytes, n);
    char *decoded;
    if (text == NULL && ls_text_decode(s->model.text, &id, 1, false, &decoded, &n, NULL) == LS_OK) {
        text = json_stringn(decoded, n);
        ls_free(decoded);
    }
    return text;
}

static json_t *token_bytes(const server *s, int32_t id) {
    const char *bytes = "";
    size_t n = 0;
    json_t *array = json_array();
    if (s->model.text != NULL) {
        ls_text_token_bytes(s->model.text, id, &bytes, &n);
    }
    for (size_t i = 0; i < n; i++) {
        json_array_append_new(array, json_integer((uint8_t)bytes[i]));
    }
    return array;
}

/* JSON has no infinity: what cannot be drawn is as unlikely as vLLM has it. The first token of a prompt has none. */
static json_t *logprob_value(float logprob) {
    return isnan(logprob) ? json_null() : json_real(logprob < -9999 ? -9999.0 : logprob);
}

/* ---- Log probabilities ---- */

static json_t *chat_entry(const server *s, int32_t id, float logprob) {
    return json_pack("{s:o, s:o, s:o}", "token", token_text(s, id), "logprob", logprob_value(logprob), "bytes",
                     token_bytes(s, id));
}

static json_t *chat_logprobs(const choice *ch, const ls_result *r, size_t first, size_t end) {
    const server *s = ch->generation->server;
    json_t *content = json_array();
    for (size_t i = first; i < end; i++) {
        ls_logprobs p;
        if (ls_request_get_logprobs(ch->request, i, &p, NULL) != LS_OK) {
            break;
        }
        json_t *entry = chat_entry(s, r->tokens[i], p.logprob), *top = json_array();
        for (int k = 0; k < p.n_top; k++) {
            json_array_append_new(top, chat_entry(s, p.top[k].token, p.top[k].logprob));
        }
        json_object_set_new(entry, "top_logprobs", top);
        json_array_append_new(content, entry);
    }
    return json_pack("{s:o}", "content", content);
}

static json_int_t n_characters(const json_t *text) {
    json_int_t n = 0;
    const char *bytes = json_string_value(text);
    for (size_t i = 0; i < json_string_length(text); i++) {
        n += (bytes[i] & 0xC0) != 0x80;
    }
    return n;
}

/* The older form, of /v1/completions. Offsets are in characters, of the tokens' own texts from the first one that was sent on;
 * the drawn token is among the most likely ones in any case. */
static json_t *text_logprobs(choice *ch, const ls_result *r, size_t first, size_t end) {
    const server *s = ch->generation->server;
    json_t *tokens = json_array(), *values = json_array(), *tops = json_array(), *offsets = json_array();
    for (size_t i = first; i < end; i++) {
        ls_logprobs p;
        if (ls_request_get_logprobs(ch->request, i, &p, NULL) != LS_OK) {
            break;
        }
        json_t *text = token_text(s, r->tokens[i]), *top = isnan(p.logprob) ? json_null() : json_object();
        for (int k = 0; k < p.n_top && !isnan(p.logprob); k++) {
            json_t *other = token_text(s, p.top[k].token);
            json_object_setn_new(top, json_string_value(other), json_string_length(other),
                                 logprob_value(p.top[k].logprob));
            json_decref(other);
        }
        if (!isnan(p.logprob)) {
            json_object_setn_new(top, json_string_value(text), json_string_length(text), logprob_value(p.logprob));
        }
        json_array_append_new(offsets, json_integer(ch->text_offset));
        ch->text_offset += n_characters(text);
        json_array_append_new(tokens, text);
        json_array_append_new(values, logprob_value(p.logprob));
        json_array_append_new(tops, top);
    }
    return json_pack("{s:o, s:o, s:o, s:o}", "tokens", tokens, "token_logprobs", values, "top_logprobs", tops,
                     "text_offset", offsets);
}

/* vLLM's: for each token of the prompt null (the first), or an object of id: {logprob, rank, decoded_token}. */
static void add_ranked(const server *s, json_t *object, int32_t id, float logprob, int rank) {
    char key[16];
    snprintf(key, sizeof key, "%d", id);
    json_object_set_new(object, key,
                        json_pack("{s:o, s:i, s:o}", "logprob", logprob_value(logprob), "rank", rank, "decoded_token",
                                  token_text(s, id)));
}

static json_t *prompt_logprobs(const choice *ch, const ls_result *r) {
    json_t *all = json_array();
    for (size_t i = 0; i < r->n_prompt_tokens; i++) {
        ls_logprobs p;
        json_t *one = json_null();
        if (ls_request_get_logprobs(ch->request, i, &p, NULL) == LS_OK && !isnan(p.logprob)) {
            one = json_object();
            for (int k = 0; k < p.n_top; k++) {
                add_ranked(ch->generation->server, one, p.top[k].token, p.top[k].logprob, k + 1);
            }
            add_ranked(ch->generation->server, one, r->tokens[i], p.logprob, p.rank + 1);
        }
        json_array_append_new(all, one);
    }
    return all;
}

/* Of the answer's tokens [first, end), counted from its beginning; `end` without the token that stopped it. */
static json_t *logprobs_of(choice *ch, const ls_result *r, size_t first, size_t end) {
    const ask *a = &ch->generation->ask;
    bool hidden = r->stop_token >= 0 && !a->params.include_stop && r->n_prompt_tokens + end == r->n_tokens;
    if (!a->logprobs) {
        return json_null();
    }
    first += r->n_prompt_tokens;
    end += r->n_prompt_tokens - (hidden && end > 0 ? 1 : 0);
    return a->is_chat ? chat_logprobs(ch, r, first, end)
                      : text_logprobs(ch, r, a->echo && first == r->n_prompt_tokens ? 0 : first, end);
}

/* ---- Text and ends ---- */

void choice_text(choice *ch, const ls_result *result, const char **text, size_t *n_bytes) {
    *text = result->text != NULL ? result->text : "";
    *n_bytes = result->text_bytes;
    if (ch->generation->server->model.text != NULL) {
        return;
    }
    if (ch->ids == NULL) {
        ch->ids = evbuffer_new();
    }
    if (ch->ids == NULL) {
        return;
    }
    evbuffer_drain(ch->ids, evbuffer_get_length(ch->ids));
    for (size_t i = result->n_prompt_tokens; i < result->n_tokens; i++) {
        evbuffer_add_printf(ch->ids, " %d", result->tokens[i]);
    }
    const char *all = (const char *)evbuffer_pullup(ch->ids, -1);
    *text = all != NULL ? all : "";
    *n_bytes = evbuffer_get_length(ch->ids);
}

static json_t *finish_of(const ls_result *r) {
    switch (r->finish) {
    case LS_FINISH_NONE:
        return json_null();
    case LS_FINISH_STOP:
    case LS_FINISH_LENGTH:
        return json_string(ls_finish_name(r->finish));
    default:
        return json_string("abort");
    }
}

/* The stop string or token of the request that ended it; null for the model's own end. */
static json_t *stop_of(const choice *ch, const ls_result *r) {
    const ask *a = &ch->generation->ask;
    if (r->stop_string != NULL) {
        return json_string(r->stop_string);
    }
    for (size_t i = 0; i < a->params.n_stop_tokens; i++) {
        if (r->stop_token >= 0 && a->stop_ids[i] == r->stop_token) {
            return json_integer(r->stop_token);
        }
    }
    return json_null();
}

/* ---- Whole answers ---- */

static json_t *usage_of(const generation *g) {
    json_int_t prompt = 0, cached = 0, completion = 0;
    for (int i = 0; i < g->n_choices; i++) {
        const choice *ch = &g->choice[i];
        if (i % (int)g->ask.n == 0) { /* a prompt counts once */
            prompt += (json_int_t)ch->n_prompt_tokens;
            cached += (json_int_t)ch->n_cached_tokens;
        }
        completion += (json_int_t)ch->n_tokens;
    }
    return json_pack("{s:I, s:I, s:I, s:{s:I}}", "prompt_tokens", prompt, "completion_tokens", completion,
                     "total_tokens", prompt + completion, "prompt_tokens_details", "cached_tokens", cached);
}

/* The prompt and the answer, where it was asked for. */
static json_t *echoed(const choice *ch, const char *text, size_t n_bytes, bool first) {
    const ask_prompt *prompt = &ch->generation->ask.prompt[ch->i_prompt];
    if (!first || prompt->echo == NULL) {
        return json_stringn(text, n_bytes);
    }
    struct evbuffer *all = evbuffer_new();
    if (all == NULL) {
        return NULL;
    }
    evbuffer_add(all, prompt->echo, prompt->echo_bytes);
    evbuffer_add(all, text, n_bytes);
    const char *bytes = (const char *)evbuffer_pullup(all, -1);
    json_t *string = json_stringn(bytes != NULL ? bytes : "", evbuffer_get_length(all));
    evbuffer_free(all);
    return string;
}

static json_t *whole_choice(choice *ch) {
    ls_result r = LS_RESULT_INIT;
    const ask *a = &ch->generation->ask;
    const char *text;
    size_t n_bytes;
    if (ls_request_get_result(ch->request, &r, NULL) != LS_OK) {
        return NULL;
    }
    choice_text(ch, &r, &text, &n_bytes);
    json_t *logprobs = logprobs_of(ch, &r, 0, r.n_tokens - r.n_prompt_tokens);
    json_t *ranked = a->prompt_logprobs ? prompt_logprobs(ch, &r) : json_null();
    json_t *out = a->is_chat ? json_pack("{s:i, s:{s:s, s:o}}", "index", ch->index, "message", "role", "assistant",
                                         "content", json_stringn(text, n_bytes))
                             : json_pack("{s:i, s:o}", "index", ch->index, "text", echoed(ch, text, n_bytes, true));
    if (out == NULL) {
        json_decref(logprobs);
        json_decref(ranked);
        return NULL;
    }
    json_object_set_new(out, "logprobs", logprobs);
    json_object_set_new(out, "finish_reason", finish_of(&r));
    json_object_set_new(out, "stop_reason", stop_of(ch, &r));
    json_object_set_new(out, "prompt_logprobs", ranked);
    return out;
}

static json_t *frame(const generation *g, const char *object, json_t *choices) {
    return json_pack("{s:s, s:s, s:I, s:s, s:s, s:o}", "id", g->id, "object", object, "created",
                     (json_int_t)g->created_s, "model", g->server->params->name[0], "system_fingerprint",
                     "lockstep-" LS_VERSION, "choices", choices);
}

json_t *answer_body(generation *g) {
    json_t *choices = json_array();
    for (int i = 0; i < g->n_choices; i++) {
        if (json_array_append_new(choices, whole_choice(&g->choice[i])) != 0) {
            json_decref(choices);
            return NULL;
        }
    }
    json_t *body = frame(g, g->ask.is_chat ? "chat.completion" : "text_completion", choices);
    if (body != NULL) {
        json_object_set_new(body, "usage", usage_of(g));
    }
    return body;
}

/* ---- Streams ---- */

json_t *answer_delta_role(const choice *ch) {
    return json_pack("{s:i, s:{s:s, s:s}, s:n, s:n}", "index", ch->index, "delta", "role", "assistant", "content", "",
                     "logprobs", "finish_reason");
}

json_t *answer_delta(choice *ch, const ls_result *r, const char *text, size_t n_bytes, size_t n_tokens) {
    const ask *a = &ch->generation->ask;
    json_t *logprobs = logprobs_of(ch, r, ch->sent_tokens, n_tokens);
    json_t *out = a->is_chat
                      ? json_pack("{s:i, s:{s:o}}", "index", ch->index, "delta", "content", json_stringn(text, n_bytes))
                      : json_pack("{s:i, s:o}", "index", ch->index, "text", echoed(ch, text, n_bytes, !ch->opened));
    if (out == NULL) {
        json_decref(logprobs);
        return NULL;
    }
    json_object_set_new(out, "logprobs", logprobs);
    json_object_set_new(out, "finish_reason", finish_of(r));
    if (r->finish != LS_FINISH_NONE) {
        json_object_set_new(out, "stop_reason", stop_of(ch, r));
    }
    return out;
}

json_t *answer_chunk(const generation *g, json_t *one) {
    json_t *choices = json_array();
    bool is_usage = one == NULL;
    if (!is_usage) {
        json_array_append_new(choices, one);
    }
    json_t *chunk = frame(g, g->ask.is_chat ? "chat.completion.chunk" : "text_completion", choices);
    if (chunk != NULL && (is_usage || g->ask.usage_each)) {
        json_object_set_new(chunk, "usage", usage_of(g));
    } else if (chunk != NULL && g->ask.include_usage) {
        json_object_set_new(chunk, "usage", json_null());
    }
    return chunk;
}
