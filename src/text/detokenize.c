/* See detokenize.h. Room for the worst case is taken first: a failure leaves both state and output as they were. */
#include "text/detokenize.h"

#include <string.h>

#include "text/tokenizer_parts.h"
#include "text/utf8.h"

void detokenizer_init(detokenizer *state, const ls_tokenizer *tokenizer, bool skip_special) {
    *state = (detokenizer){.tokenizer = tokenizer, .skip_special = skip_special};
}

/* Appending within reserved room cannot fail. */
static void put(text_buffer *out, const char *bytes, size_t n) {
    (void)text_buffer_append(out, bytes, n, NULL);
}

/* ---- Byte-level ---- */

/* One more byte for the held ones: a character that is whole comes out, and so does what cannot become one. */
static void push_byte(detokenizer *state, char byte, text_buffer *out) {
    state->held[state->n_held++] = byte;
    while (state->n_held > 0) {
        size_t n_bytes;
        utf8_kind kind = utf8_next(state->held, state->n_held, &n_bytes);
        if (kind == UTF8_CUT) {
            return;
        }
        if (kind == UTF8_CHARACTER) {
            put(out, state->held, n_bytes);
        } else {
            put(out, UTF8_REPLACEMENT, UTF8_REPLACEMENT_BYTES);
        }
        state->n_held -= n_bytes;
        memmove(state->held, state->held + n_bytes, state->n_held);
    }
}

static void push_byte_level(detokenizer *state, const char *bytes, size_t n, text_buffer *out) {
    while (n > 0) {
        size_t whole = state->n_held == 0 ? utf8_valid_bytes(bytes, n) : 0;
        put(out, bytes, whole);
        if (whole < n) {
            push_byte(state, bytes[whole++], out);
        }
        bytes += whole;
        n -= whole;
    }
}

/* ---- Whole texts ---- */

/* Certain text, whole characters: what remains is to strip the start. */
static void put_text(detokenizer *state, const char *text, size_t n, text_buffer *out) {
    const decoder *d = &state->tokenizer->decode;
    while (!state->any_text && n > 0) {
        if (state->n_stripped < d->n_strip && n >= d->n_strip_bytes && memcmp(text, d->strip, d->n_strip_bytes) == 0) {
            state->n_stripped++;
            text += d->n_strip_bytes;
            n -= d->n_strip_bytes;
        } else {
            state->any_text = true;
        }
    }
    put(out, text, n);
}

/* The run of byte tokens is over. */
static void end_run(detokenizer *state, text_buffer *out) {
    if (state->run_is_invalid || utf8_valid_bytes(state->held, state->n_held) < state->n_held) {
        for (size_t i = 0; i < state->n_held; i++) {
            put_text(state, UTF8_REPLACEMENT, UTF8_REPLACEMENT_BYTES, out);
        }
    } else {
        put_text(state, state->held, state->n_held, out);
    }
    state->n_held = 0;
    state->run_is_invalid = false;
}

/* One more byte of the run; a run that is too long gives out what it can. */
static void push_run(detokenizer *state, char byte, text_buffer *out) {
    if (state->n_held == DETOKENIZER_MAX_HELD) {
        size_t whole = state->run_is_invalid ? 0 : utf8_valid_bytes(state->held, state->n_held);
        size_t n_bytes = 0, rest = state->n_held - whole;
        if (rest > 0 && (state->run_is_invalid || utf8_next(state->held + whole, rest, &n_bytes) != UTF8_CUT)) {
            for (size_t i = 0; i < state->n_held; i++) {
                put_text(state, UTF8_REPLACEMENT, UTF8_REPLACEMENT_BYTES, out);
            }
            state->run_is_invalid = true;
            state->n_held = 0;
        } else {
            put_text(state, state->held, whole, out);
            memmove(state->held, state->held + whole, rest);
            state->n_held = rest;
        }
    }
    state->held[state->n_held++] = byte;
}

/* Metaspace: marks are spaces, or nothing in the first token. */
static void put_marked(detokenizer *state, const char *text, size_t n, text_buffer *out) {
    const decoder *d = &state->tokenizer->decode;
    bool drop = d->drop_first_marks && !state->any_token;
    while (n > 0) {
        const char *mark = memmem(text, n, d->mark, d->n_mark);
        size_t before = mark ? (size_t)(mark - text) : n;
        put_text(state, text, before, out);
        if (mark != NULL) {
            put_text(state, " ", drop ? 0 : 1, out);
            before += d->n_mark;
        }
        text += before;
        n -= before;
    }
}

/* ---- Both ---- */

ls_status detokenizer_push(detokenizer *state, int32_t id, text_buffer *out, ls_error *err) {
    const ls_tokenizer *t = state->tokenizer;
    const vocab_token *token = vocab_get(&t->vocab, id);
    if (token == NULL || (state->skip_special && (token->flags & (TOKEN_SPECIAL | TOKEN_KEPT)) == TOKEN_SPECIAL)) {
        return LS_OK;
    }
    const char *text = t->vocab.bytes + token->text;
    size_t n = token->n_text_bytes;
    TRY(text_buffer_reserve(out, (n + state->n_held) * UTF8_REPLACEMENT_BYTES, err));
    if (t->decode.byte_level) {
        push_byte_level(state, text, n, out);
    } else if (token->flags & TOKEN_BYTE) {
        push_run(state, text[0], out);
    } else {
        end_run(state, out);
        if (t->decode.n_mark > 0) {
            put_marked(state, text, n, out);
        } else {
            put_text(state, text, n, out);
        }
    }
    state->any_token = true;
    return LS_OK;
}

ls_status detokenizer_flush(detokenizer *state, text_buffer *out, ls_error *err) {
    if (state->n_held == 0) {
        return LS_OK;
    }
    TRY(text_buffer_reserve(out, state->n_held * UTF8_REPLACEMENT_BYTES, err));
    if (state->tokenizer->decode.byte_level) {
        put(out, UTF8_REPLACEMENT, UTF8_REPLACEMENT_BYTES);
        state->n_held = 0;
    } else {
        end_run(state, out);
    }
    return LS_OK;
}
