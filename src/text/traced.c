/* See traced.h. */
#include "text/traced.h"

#include <stdlib.h>
#include <string.h>

void traced_start(traced_text *to, bool traced) {
    text_buffer_clear(&to->text);
    to->traced = traced;
}

void traced_deinit(traced_text *to) {
    text_buffer_deinit(&to->text);
    free(to->span);
    *to = (traced_text){0};
}

/* Room for n more bytes and their spans. */
static ls_status reserve(traced_text *to, size_t n, ls_error *err) {
    TRY(text_buffer_reserve(&to->text, n, err));
    if (to->traced && to->text.capacity > to->n_spans) {
        text_span *grown = realloc(to->span, to->text.capacity * sizeof *grown);
        if (grown == NULL) {
            return error_set(err, LS_ENOMEM, "out of memory: places of %zu bytes of text", to->text.n + n);
        }
        to->span = grown;
        to->n_spans = to->text.capacity;
    }
    return LS_OK;
}

ls_status traced_copy(traced_text *to, const text_view *from, size_t start, size_t end, ls_error *err) {
    TRY(reserve(to, end - start, err));
    if (to->traced && end > start) {
        memcpy(to->span + to->text.n, from->span + start, (end - start) * sizeof *to->span);
    }
    return text_buffer_append(&to->text, from->text + start, end - start, err);
}

ls_status traced_put(traced_text *to, const char *bytes, size_t n, text_span span, ls_error *err) {
    TRY(reserve(to, n, err));
    for (size_t i = 0; to->traced && i < n; i++) {
        to->span[to->text.n + i] = span;
    }
    return text_buffer_append(&to->text, bytes, n, err);
}
