/* POST /tokenize and /detokenize, in vLLM's form and in llama-server's ("content"). */
#include <stdlib.h>

#include "server/serving.h"

static ls_status need_tokenizer(const server *s, ls_error *err) {
    return s->model.text != NULL ? LS_OK : error_set(err, LS_EUNSUPPORTED, "this model has no tokenizer");
}

/* The bytes of a token as text; what is not UTF-8 as U+FFFD. */
static json_t *token_string(const server *s, int32_t id) {
    char *text;
    size_t n;
    if (ls_text_decode(s->model.text, &id, 1, false, &text, &n, NULL) != LS_OK) {
        return NULL;
    }
    json_t *string = json_stringn(text, n);
    ls_free(text);
    return string;
}

static json_t *tokens_body(const server *s, const ls_token *token, size_t n, bool with_strings) {
    json_t *ids = json_array(), *strings = with_strings ? json_array() : json_null();
    for (size_t i = 0; i < n; i++) {
        json_array_append_new(ids, json_integer(token[i].id));
        if (with_strings) {
            json_array_append_new(strings, token_string(s, token[i].id));
        }
    }
    return json_pack("{s:I, s:i, s:o, s:o}", "count", (json_int_t)n, "max_model_len", s->max_tokens, "tokens", ids,
                     "token_strs", strings);
}

static ls_status tokenize(const server *s, fields *f, json_t **out, ls_error *err) {
    const char *text = NULL;
    char *chat = NULL;
    size_t n_bytes = 0, n;
    bool is_chat = fields_find(f, "messages") != NULL, add_special = !is_chat, with_strings = false;
    ls_token *token = NULL;
    TRY(need_tokenizer(s, err));
    TRY(fields_bool(f, "add_special_tokens", &add_special, err));
    TRY(fields_bool(f, "return_token_strs", &with_strings, err));
    if (is_chat) {
        TRY(chat_render(s, f, &chat, &n_bytes, err));
        text = chat;
    } else {
        TRY(fields_text(f, "content", &text, &n_bytes, err));
        TRY(fields_text(f, "prompt", &text, &n_bytes, err));
    }
    if (text == NULL) {
        return fields_error(f, "prompt", LS_EINVAL, err, "missing: give prompt, or messages");
    }
    unsigned flags = LS_ENCODE_PARSE_SPECIAL | (add_special ? LS_ENCODE_ADD_SPECIAL : 0);
    ls_status st = ls_text_encode(s->model.text, text, n_bytes, flags, &token, &n, err);
    ls_free(chat);
    TRY(st);
    *out = tokens_body(s, token, n, with_strings);
    ls_free(token);
    return LS_OK;
}

static ls_status check_ids(const server *s, fields *f, const int32_t *id, size_t n, ls_error *err) {
    for (size_t i = 0; i < n; i++) {
        if (id[i] >= s->info.n_vocab) {
            return fields_error(f, "tokens", LS_EINVAL, err, "token %zu has id %d; the model's vocabulary ends at %d",
                                i, id[i], s->info.n_vocab - 1);
        }
    }
    return LS_OK;
}

static ls_status detokenize(const server *s, fields *f, json_t **out, ls_error *err) {
    int32_t *id = NULL;
    size_t n = 0, n_bytes;
    char *text;
    TRY(need_tokenizer(s, err));
    TRY(fields_ids(f, "tokens", &id, &n, err));
    if (id == NULL) {
        return fields_error(f, "tokens", LS_EINVAL, err, "missing");
    }
    ls_status st = check_ids(s, f, id, n, err);
    st = st == LS_OK ? ls_text_decode(s->model.text, id, n, false, &text, &n_bytes, err) : st;
    free(id);
    TRY(st);
    *out = json_pack("{s:s%, s:s%}", "prompt", text, n_bytes, "content", text, n_bytes);
    ls_free(text);
    return LS_OK;
}

const body_kind body_of_tokenize = {.make = tokenize}, body_of_detokenize = {.make = detokenize};
