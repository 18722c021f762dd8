/* See normalize.h. */
#include "text/normalize.h"

#include <string.h>
#include <utf8proc.h>

#include "text/utf8.h"

static void step_deinit(normalizer_step *step) {
    pattern_deinit(&step->pattern);
    text_buffer_deinit(&step->content);
}

ls_status normalizer_add(normalizer *n, normalizer_step *step, ls_error *err) {
    if (n->n_steps == NORMALIZER_MAX_STEPS) {
        step_deinit(step);
        return error_set(err, LS_EUNSUPPORTED, "more than %d steps are not supported", NORMALIZER_MAX_STEPS);
    }
    n->step[n->n_steps++] = *step;
    *step = (normalizer_step){0};
    return LS_OK;
}

void normalizer_deinit(normalizer *n) {
    for (int i = 0; i < n->n_steps; i++) {
        step_deinit(&n->step[i]);
    }
    n->n_steps = 0;
}

void normalize_scratch_deinit(normalize_scratch *scratch) {
    traced_deinit(&scratch->text[0]);
    traced_deinit(&scratch->text[1]);
    form_scratch_deinit(&scratch->form);
    pattern_scratch_deinit(&scratch->pattern);
}

/* Rust's char::to_lowercase: one character is two then. */
static ls_status lowercase(const text_view *from, traced_text *to, ls_error *err) {
    for (size_t at = 0, n_bytes; at < from->n; at += n_bytes) {
        int32_t point = utf8_decode(from->text + at, &n_bytes);
        utf8proc_uint8_t bytes[UTF8_MAX_BYTES];
        int32_t lower = point == 0x130 ? 'i' : utf8proc_tolower(point);
        size_t n_lower = (size_t)utf8proc_encode_char(lower, bytes);
        TRY(traced_put(to, (const char *)bytes, n_lower, view_span(from, at), err));
        if (point == 0x130) {
            TRY(traced_put(to, "\u0307", 2, view_span(from, at), err));
        }
    }
    return LS_OK;
}

static ls_status replace(const normalizer_step *step, const text_view *from, pattern_scratch *scratch, traced_text *to,
                         ls_error *err) {
    pattern_scan scan;
    size_t done = 0, start = 0, end = 0;
    TRY(pattern_scan_init(&scan, &step->pattern, scratch, from->text, from->n, err));
    for (;;) {
        TRY(pattern_scan_next(&scan, &start, &end, err));
        if (start > from->n) {
            break;
        }
        TRY(traced_copy(to, from, done, start, err));
        text_span span = end > 0 ? view_span(from, end - 1) : (text_span){0};
        TRY(traced_put(to, step->content.data, step->content.n, span, err));
        done = end;
    }
    return traced_copy(to, from, done, from->n, err);
}

static text_view strip(const normalizer_step *step, const text_view *from) {
    size_t start = step->left ? utf8_skip_spaces(from->text, from->n, 0) : 0;
    size_t end = step->right ? utf8_skip_spaces_back(from->text, start, from->n) : from->n;
    return view_part(from, start, end);
}

/* *view is replaced by what the step makes of it; the buffer is free to write into. */
static ls_status run_step(const normalizer_step *step, normalize_scratch *scratch, traced_text *to, text_view *view,
                          ls_error *err) {
    size_t at;
    switch (step->kind) {
    case NORMALIZER_STRIP:
        *view = strip(step, view);
        return LS_OK;
    case NORMALIZER_FORM:
        if (!unicode_form_suspect(step->form, view->text, view->n, &at)) {
            return LS_OK;
        }
        TRY(unicode_normalize(step->form, view, &scratch->form, to, err));
        break;
    case NORMALIZER_LOWERCASE:
        TRY(lowercase(view, to, err));
        break;
    case NORMALIZER_REPLACE:
        TRY(replace(step, view, &scratch->pattern, to, err));
        break;
    case NORMALIZER_PREPEND:
        TRY(traced_put(to, step->content.data, step->content.n, view_span(view, 0), err));
        TRY(traced_copy(to, view, 0, view->n, err));
        break;
    }
    *view = traced_view(to);
    return LS_OK;
}

ls_status normalizer_run(const normalizer *n, const text_view *text, normalize_scratch *scratch, text_view *out,
                         ls_error *err) {
    text_view view = *text;
    for (int i = 0, into = 0; i < n->n_steps && view.n > 0; i++) {
        traced_text *to = &scratch->text[into];
        traced_start(to, view.span != NULL);
        TRY(run_step(&n->step[i], scratch, to, &view, err));
        if (view.text == to->text.data) {
            into = 1 - into;
        }
    }
    *out = view;
    return LS_OK;
}
