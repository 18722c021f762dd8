/*
 * See tokenizer.h. This file runs the parts (tokenizer_parts.h); tokenizer_file.c reads them. Encoding keeps everything
 * that changes in an `encoder` on the stack, so that one tokenizer serves any number of threads.
 */
#include "text/tokenizer.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "text/normalize.h"
#include "text/tokenizer_parts.h"
#include "text/utf8.h"

enum {
    MAX_FILE_BYTES = 256 << 20, /* keeps all counts of the file within 32 bits */
    MAX_TEXT_BYTES = 64 << 20   /* far beyond any context; keeps all offsets within 32 bits */
};

ls_status token_list_push(token_list *list, int32_t id, ls_error *err) {
    if (list->n == list->capacity) {
        size_t capacity = list->capacity ? 2 * list->capacity : 64;
        int32_t *grown = capacity <= SIZE_MAX / sizeof *grown ? realloc(list->id, capacity * sizeof *grown) : NULL;
        if (grown == NULL) {
            return error_set(err, LS_ENOMEM, "out of memory: %zu token ids", capacity);
        }
        list->id = grown;
        list->capacity = capacity;
    }
    list->id[list->n++] = id;
    return LS_OK;
}

void token_list_deinit(token_list *list) {
    free(list->id);
    *list = (token_list){0};
}

ls_status tokenizer_parse(ls_tokenizer **out, const char *name, const char *json, size_t json_bytes, ls_error *err) {
    ls_status st;
    if (json_bytes > MAX_FILE_BYTES) {
        return error_set(err, LS_EFORMAT, "%s: %zu bytes, more than the %d that a tokenizer may have", name, json_bytes,
                         MAX_FILE_BYTES);
    }
    ls_tokenizer *tokenizer = calloc(1, sizeof *tokenizer);
    if (tokenizer == NULL) {
        return error_set(err, LS_ENOMEM, "%s: out of memory", name);
    }
    TRY_GOTO(tokenizer_read(tokenizer, name, json, json_bytes, err), fail);
    *out = tokenizer;
    return LS_OK;
fail:
    tokenizer_close(&tokenizer);
    return st;
}

ls_status tokenizer_open(ls_tokenizer **out, const char *path, ls_error *err) {
    ls_status st;
    ls_file file;
    TRY(file_map(&file, path, err));
    TRY_GOTO(tokenizer_parse(out, path, (const char *)file.data, file.bytes, err), fail);
fail:
    file_unmap(&file);
    return st;
}

void tokenizer_close(ls_tokenizer **tokenizer) {
    ls_tokenizer *t = *tokenizer;
    if (t == NULL) {
        return;
    }
    added_set_deinit(&t->added);
    added_set_deinit(&t->added_normalized);
    pretokenizer_deinit(&t->pre);
    bpe_deinit(&t->bpe);
    vocab_deinit(&t->vocab);
    free(t);
    *tokenizer = NULL;
}

/* One call of tokenizer_encode. */
typedef struct encoder {
    const ls_tokenizer *tokenizer;
    bool keep_special;
    text_buffer repaired; /* the text with U+FFFD where it is not UTF-8 */
    normalize_scratch normalize;
    pretokenizer_scratch pre;
    bpe_scratch bpe;
    token_list *out;
} encoder;

static void encoder_deinit(encoder *e) {
    text_buffer_deinit(&e->repaired);
    normalize_scratch_deinit(&e->normalize);
    pretokenizer_scratch_deinit(&e->pre);
    bpe_scratch_deinit(&e->bpe);
}

/* Normalised text without added tokens. */
static ls_status encode_plain(encoder *e, const char *text, size_t n, ls_error *err) {
    const ls_tokenizer *t = e->tokenizer;
    TRY(pretokenizer_run(&t->pre, text, n, &e->pre, err));
    const piece_list *pieces = &e->pre.pieces;
    for (size_t i = 0, start = 0; i < pieces->n; start = pieces->end[i++]) {
        TRY(bpe_encode(&t->bpe, &t->vocab, pieces->text + start, pieces->end[i] - start, &e->bpe, e->out, err));
    }
    return LS_OK;
}

/* Text as it came, without the added tokens that are looked for there. */
static ls_status encode_raw(encoder *e, const char *text, size_t n, ls_error *err) {
    const ls_tokenizer *t = e->tokenizer;
    if (t->nfc) {
        TRY(normalize_nfc(text, n, &e->normalize, &text, &n, err));
    }
    added_scan scan;
    added_scan_init(&scan, &t->added_normalized, text, n, e->keep_special);
    for (added_part part; added_scan_next(&scan, &part);) {
        if (part.id >= 0) {
            TRY(token_list_push(e->out, part.id, err));
        } else {
            TRY(encode_plain(e, part.text, part.n_bytes, err));
        }
    }
    return LS_OK;
}

static ls_status encode_text(encoder *e, const char *text, size_t n, ls_error *err) {
    if (utf8_valid_bytes(text, n) < n) {
        TRY(utf8_append_lossy(&e->repaired, text, n, err));
        text = e->repaired.data;
        n = e->repaired.n;
    }
    added_scan scan;
    added_scan_init(&scan, &e->tokenizer->added, text, n, e->keep_special);
    for (added_part part; added_scan_next(&scan, &part);) {
        if (part.id >= 0) {
            TRY(token_list_push(e->out, part.id, err));
        } else {
            TRY(encode_raw(e, part.text, part.n_bytes, err));
        }
    }
    return LS_OK;
}

ls_status tokenizer_encode(const ls_tokenizer *tokenizer, const char *text, size_t text_bytes, unsigned flags,
                           token_list *out, ls_error *err) {
    ls_status st;
    if (text_bytes > MAX_TEXT_BYTES) {
        return error_set(err, LS_ETOOLONG, "a text of %zu bytes is more than the %d that can be encoded at once",
                         text_bytes, MAX_TEXT_BYTES);
    }
    size_t n_before = out->n;
    encoder e = {.tokenizer = tokenizer, .keep_special = !(flags & TOKENIZER_PARSE_SPECIAL), .out = out};
    TRY_GOTO(encode_text(&e, text, text_bytes, err), fail);
fail:
    encoder_deinit(&e);
    if (st < 0) {
        out->n = n_before;
    }
    return st;
}

static const vocab_token *token_of(const ls_tokenizer *tokenizer, int32_t id) {
    const vocab *v = &tokenizer->vocab;
    return id >= 0 && id <= v->max_id && v->token[id].present ? &v->token[id] : NULL;
}

bool tokenizer_token_bytes(const ls_tokenizer *tokenizer, int32_t id, const char **bytes, size_t *n_bytes) {
    const vocab_token *token = token_of(tokenizer, id);
    if (token == NULL) {
        return false;
    }
    *bytes = tokenizer->vocab.bytes + token->offset;
    *n_bytes = token->n_bytes;
    return true;
}

bool tokenizer_is_special(const ls_tokenizer *tokenizer, int32_t id) {
    const vocab_token *token = token_of(tokenizer, id);
    return token != NULL && token->special;
}

int32_t tokenizer_find(const ls_tokenizer *tokenizer, const char *token_text) {
    size_t n = strlen(token_text);
    const added_set *sets[] = {&tokenizer->added, &tokenizer->added_normalized};
    for (int i = 0; i < 2; i++) {
        const added_token *token = added_set_match(sets[i], token_text, n);
        if (token != NULL && token->n_bytes == n) {
            return token->id;
        }
    }
    int32_t id = vocab_find(&tokenizer->vocab, token_text, n, false);
    return id >= 0 ? id : vocab_find(&tokenizer->vocab, token_text, n, true);
}

int32_t tokenizer_max_id(const ls_tokenizer *tokenizer) {
    return tokenizer->vocab.max_id;
}
