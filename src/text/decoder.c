/* See decoder.h. */
#include "text/decoder.h"

#include <string.h>

void decoder_deinit(decoder *d) {
    for (int i = 0; i < d->n_replaces; i++) {
        pattern_deinit(&d->replace[i].pattern);
        text_buffer_deinit(&d->replace[i].content);
    }
    d->n_replaces = 0;
}

static ls_status replace_all(const decoder_replace *replace, const text_buffer *from, pattern_scratch *scratch,
                             text_buffer *to, ls_error *err) {
    pattern_scan scan;
    size_t done = 0, start = 0, end = 0;
    text_buffer_clear(to);
    TRY(text_buffer_append(to, "", 0, err));
    if (from->n == 0) {
        return LS_OK;
    }
    TRY(pattern_scan_init(&scan, &replace->pattern, scratch, from->data, from->n, err));
    for (;;) {
        TRY(pattern_scan_next(&scan, &start, &end, err));
        if (start > from->n) {
            break;
        }
        TRY(text_buffer_append(to, from->data + done, start - done, err));
        TRY(text_buffer_append(to, replace->content.data, replace->content.n, err));
        done = end;
    }
    return text_buffer_append(to, from->data + done, from->n - done, err);
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9'   ? c - '0'
           : c >= 'A' && c <= 'F' ? c - 'A' + 10
           : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                  : -1;
}

/* The byte of "<0xE2>", or -1. ("<0x+2>" is 2 to Rust's from_str_radix.) */
static int byte_token(const char *text, size_t n) {
    if (n != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>') {
        return -1;
    }
    int high = text[3] == '+' ? 0 : hex_digit(text[3]), low = hex_digit(text[4]);
    return high < 0 || low < 0 ? -1 : high * 16 + low;
}

/* The text of one token: *text is replaced by what the steps make of it. */
static ls_status decode_token(const decoder *d, text_buffer *text, text_buffer *spare, pattern_scratch *scratch,
                              ls_error *err) {
    for (int i = 0; i < d->n_replaces; i++) {
        TRY(replace_all(&d->replace[i], text, scratch, spare, err));
        text_buffer swap = *text;
        *text = *spare;
        *spare = swap;
    }
    return LS_OK;
}

ls_status decoder_apply(const decoder *d, vocab *v, ls_error *err) {
    ls_status st = LS_OK;
    text_buffer text = {0}, spare = {0};
    pattern_scratch scratch = {0};
    for (int32_t id = 0; id <= v->max_id && !d->byte_level; id++) {
        vocab_token *token = &v->token[id];
        if (!(token->flags & TOKEN_PRESENT)) {
            continue;
        }
        text_buffer_clear(&text);
        TRY_GOTO(text_buffer_append(&text, v->bytes + token->text, token->n_text_bytes, err), fail);
        TRY_GOTO(decode_token(d, &text, &spare, &scratch, err), fail);
        int byte = d->byte_fallback ? byte_token(text.data, text.n) : -1;
        if (byte >= 0) {
            char c = (char)byte;
            token->flags |= TOKEN_BYTE;
            TRY_GOTO(vocab_set_text(v, id, &c, 1, err), fail);
        } else if (text.n != token->n_text_bytes || memcmp(text.data, v->bytes + token->text, text.n) != 0) {
            TRY_GOTO(vocab_set_text(v, id, text.data, text.n, err), fail);
        }
    }
fail:
    text_buffer_deinit(&text);
    text_buffer_deinit(&spare);
    pattern_scratch_deinit(&scratch);
    return st;
}
