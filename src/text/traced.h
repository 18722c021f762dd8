/*
 * Text that remembers where it came from.
 *
 * Normalizers and pre-tokenizers rewrite the text; a token's place in the input is still wanted. So each byte of a
 * rewritten text has a span: the bytes of the input that it stands for, always whole characters. A new byte (a space
 * put in front, the replacement of a match) takes the span of a neighbour, by the rules of Hugging Face `tokenizers`.
 * Spans are kept only when somebody asked for them (`span` is NULL otherwise): they cost more than the ids.
 */
#ifndef LS_TEXT_TRACED_H
#define LS_TEXT_TRACED_H

#include "text/text_buffer.h"

typedef struct text_span {
    uint32_t start, end; /* bytes of the input: [start, end) */
} text_span;

/* Borrowed text, valid UTF-8. */
typedef struct text_view {
    const char *text;
    size_t n;
    const text_span *span; /* [n], or NULL */
} text_view;

/* A text being written. Start zeroed. */
typedef struct traced_text {
    text_buffer text;
    text_span *span;
    size_t n_spans; /* capacity */
    bool traced;
} traced_text;

void traced_start(traced_text *to, bool traced); /* empty again; keeps the memory */
void traced_deinit(traced_text *to);

/* Appends from[start .. end) with its spans. */
ls_status traced_copy(traced_text *to, const text_view *from, size_t start, size_t end, ls_error *err);
/* Appends n bytes that all stand for `span`. */
ls_status traced_put(traced_text *to, const char *bytes, size_t n, text_span span, ls_error *err);

static inline text_view traced_view(const traced_text *from) {
    return (text_view){from->text.data, from->text.n, from->traced ? from->span : NULL};
}

static inline text_view view_part(const text_view *view, size_t start, size_t end) {
    return (text_view){view->text + start, end - start, view->span ? view->span + start : NULL};
}

/* The span of byte `at`; of no meaning without spans. */
static inline text_span view_span(const text_view *view, size_t at) {
    return view->span ? view->span[at] : (text_span){0};
}

#endif
