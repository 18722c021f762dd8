/* See detokenize.h. Room for the worst case is taken first: a failure leaves both state and output as they were. */
#include "text/detokenize.h"

#include <string.h>

#include "text/utf8.h"

void detokenizer_init(detokenizer *state, const ls_tokenizer *tokenizer, bool skip_special) {
    *state = (detokenizer){.tokenizer = tokenizer, .skip_special = skip_special};
}

/* Appending within reserved room cannot fail. */
static void put(text_buffer *out, const char *bytes, size_t n) {
    (void)text_buffer_append(out, bytes, n, NULL);
}

/* One more byte for the held ones: a character that is whole comes out, and so does what cannot become one. */
static void push_byte(detokenizer *state, char byte, text_buffer *out) {
    char *held = (char *)state->held;
    held[state->n_held++] = byte;
    while (state->n_held > 0) {
        size_t n_bytes;
        utf8_kind kind = utf8_next(held, (size_t)state->n_held, &n_bytes);
        if (kind == UTF8_CUT) {
            return;
        }
        if (kind == UTF8_CHARACTER) {
            put(out, held, n_bytes);
        } else {
            put(out, UTF8_REPLACEMENT, UTF8_REPLACEMENT_BYTES);
        }
        state->n_held -= (int)n_bytes;
        memmove(held, held + n_bytes, (size_t)state->n_held);
    }
}

ls_status detokenizer_push(detokenizer *state, int32_t id, text_buffer *out, ls_error *err) {
    const char *bytes;
    size_t n;
    if (!tokenizer_token_bytes(state->tokenizer, id, &bytes, &n) ||
        (state->skip_special && tokenizer_is_special(state->tokenizer, id))) {
        return LS_OK;
    }
    TRY(text_buffer_reserve(out, (n + sizeof state->held) * UTF8_REPLACEMENT_BYTES, err));
    while (n > 0) {
        size_t whole = state->n_held == 0 ? utf8_valid_bytes(bytes, n) : 0;
        put(out, bytes, whole);
        if (whole < n) {
            push_byte(state, bytes[whole++], out);
        }
        bytes += whole;
        n -= whole;
    }
    return LS_OK;
}

ls_status detokenizer_flush(detokenizer *state, text_buffer *out, ls_error *err) {
    if (state->n_held > 0) {
        TRY(text_buffer_append(out, UTF8_REPLACEMENT, UTF8_REPLACEMENT_BYTES, err));
        state->n_held = 0;
    }
    return LS_OK;
}
