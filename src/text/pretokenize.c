/*
 * See pretokenize.h. A step reads the pieces of the step before (`before`) and writes `pieces`; the two lists change
 * places after each step. SPACE and META change the text; they write into the buffer that the current text is not in.
 */
#include "text/pretokenize.h"

#include <stdlib.h>
#include <string.h>

const char pretokenizer_gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

ls_status pretokenizer_add(pretokenizer *pre, pretokenizer_step *step, ls_error *err) {
    if (pre->n_steps == PRETOKENIZER_MAX_STEPS) {
        pattern_deinit(&step->pattern);
        return error_set(err, LS_EUNSUPPORTED, "more than %d steps are not supported", PRETOKENIZER_MAX_STEPS);
    }
    pre->step[pre->n_steps++] = *step;
    *step = (pretokenizer_step){0};
    return LS_OK;
}

void pretokenizer_deinit(pretokenizer *pre) {
    for (int i = 0; i < pre->n_steps; i++) {
        pattern_deinit(&pre->step[i].pattern);
    }
    pre->n_steps = 0;
}

void pretokenizer_scratch_deinit(pretokenizer_scratch *scratch) {
    free(scratch->pieces.piece);
    free(scratch->before.piece);
    traced_deinit(&scratch->text[0]);
    traced_deinit(&scratch->text[1]);
    pattern_scratch_deinit(&scratch->pattern);
    *scratch = (pretokenizer_scratch){0};
}

/* Without spans only the first piece of an unchanged text is known to be at the start, and that is all FIRST needs when
 * it is the first step and nothing came before it. */
bool pretokenizer_needs_spans(const pretokenizer *pre, bool text_was_rewritten) {
    for (int i = 0; i < pre->n_steps; i++) {
        if (pre->step[i].kind == PRETOKENIZER_META && pre->step[i].prepend == PREPEND_FIRST) {
            return i > 0 || text_was_rewritten;
        }
    }
    return false;
}

/* Empty pieces are dropped. */
static ls_status add_piece(piece_list *pieces, size_t start, size_t end, ls_error *err) {
    if (start == end) {
        return LS_OK;
    }
    if (pieces->n == pieces->capacity) {
        size_t capacity = pieces->capacity ? 2 * pieces->capacity : 256;
        text_span *grown = realloc(pieces->piece, capacity * sizeof *grown);
        if (grown == NULL) {
            return error_set(err, LS_ENOMEM, "out of memory: %zu pieces of text", capacity);
        }
        pieces->piece = grown;
        pieces->capacity = capacity;
    }
    pieces->piece[pieces->n++] = (text_span){(uint32_t)start, (uint32_t)end};
    return LS_OK;
}

/* A piece that may still grow, or join the part behind it. */
typedef struct splitter {
    piece_list *pieces;
    split_behavior behavior;
    bool has_open, after_match; /* after_match: the part before was one */
    size_t start, end;          /* of the open piece */
} splitter;

static ls_status close_piece(splitter *s, ls_error *err) {
    bool was_open = s->has_open;
    s->has_open = false;
    return was_open ? add_piece(s->pieces, s->start, s->end, err) : LS_OK;
}

/* The next part of the text, a match or what lies between two. A match may be empty: it makes no piece, but it counts as
 * a neighbour, as it does with Hugging Face. */
static ls_status take_part(splitter *s, size_t start, size_t end, bool is_match, ls_error *err) {
    bool joins = false;
    switch (s->behavior) {
    case SPLIT_ISOLATED:
        break;
    case SPLIT_REMOVED:
        if (is_match) {
            return LS_OK;
        }
        break;
    case SPLIT_MERGED_WITH_PREVIOUS:
        joins = is_match && !s->after_match;
        break;
    case SPLIT_MERGED_WITH_NEXT:
        joins = !is_match && s->after_match;
        break;
    case SPLIT_CONTIGUOUS:
        joins = is_match == s->after_match;
        break;
    }
    s->after_match = is_match;
    if (joins && s->has_open) {
        s->end = end;
        return LS_OK;
    }
    TRY(close_piece(s, err));
    s->has_open = true;
    s->start = start;
    s->end = end;
    return LS_OK;
}

/* Splits text[start .. end), a text of its own to the pattern. */
static ls_status split_piece(const pretokenizer_step *step, const char *text, size_t start, size_t end,
                             pretokenizer_scratch *scratch, ls_error *err) {
    splitter s = {.pieces = &scratch->pieces, .behavior = step->behavior};
    pattern_scan scan;
    size_t n = end - start, done = 0, from = 0, to = 0;
    TRY(pattern_scan_init(&scan, &step->pattern, &scratch->pattern, text + start, n, err));
    for (;;) {
        TRY(pattern_scan_next(&scan, &from, &to, err));
        if (from > n) {
            break;
        }
        if (from > done) {
            TRY(take_part(&s, start + done, start + from, step->invert, err));
        }
        TRY(take_part(&s, start + from, start + to, !step->invert, err));
        done = to;
    }
    if (done < n) {
        TRY(take_part(&s, start + done, end, step->invert, err));
    }
    return close_piece(&s, err);
}

static ls_status run_split(const pretokenizer_step *step, pretokenizer_scratch *scratch, ls_error *err) {
    const piece_list *before = &scratch->before;
    scratch->pieces.text = before->text;
    for (size_t i = 0; i < before->n; i++) {
        TRY(split_piece(step, before->text.text, before->piece[i].start, before->piece[i].end, scratch, err));
    }
    return LS_OK;
}

/* The buffer that the current text is not in, emptied. */
static traced_text *free_buffer(pretokenizer_scratch *scratch) {
    const text_view *text = &scratch->before.text;
    traced_text *to = &scratch->text[text->text == scratch->text[0].text.data];
    traced_start(to, text->span != NULL);
    return to;
}

static ls_status run_space(pretokenizer_scratch *scratch, ls_error *err) {
    const piece_list *before = &scratch->before;
    traced_text *to = free_buffer(scratch);
    for (size_t i = 0; i < before->n; i++) {
        size_t start = before->piece[i].start, begin = to->text.n;
        if (before->text.text[start] != ' ') {
            TRY(traced_put(to, " ", 1, view_span(&before->text, start), err));
        }
        TRY(traced_copy(to, &before->text, start, before->piece[i].end, err));
        TRY(add_piece(&scratch->pieces, begin, to->text.n, err));
    }
    scratch->pieces.text = traced_view(to);
    return LS_OK;
}

static ls_status run_meta(const pretokenizer_step *step, bool at_start, pretokenizer_scratch *scratch, ls_error *err) {
    const piece_list *before = &scratch->before;
    const text_view *text = &before->text;
    traced_text *to = free_buffer(scratch);
    for (size_t i = 0; i < before->n; i++) {
        size_t start = before->piece[i].start, end = before->piece[i].end, begin = to->text.n;
        bool is_first = text->span ? text->span[start].start == 0 : at_start && start == 0;
        bool marked = text->text[start] == ' ' ||
                      (end - start >= step->n_mark && memcmp(text->text + start, step->mark, step->n_mark) == 0);
        if (!marked && (step->prepend == PREPEND_ALWAYS || (step->prepend == PREPEND_FIRST && is_first))) {
            TRY(traced_put(to, step->mark, step->n_mark, view_span(text, start), err));
        }
        for (size_t at = start; at < end;) {
            const char *space = memchr(text->text + at, ' ', end - at);
            size_t until = space ? (size_t)(space - text->text) : end;
            TRY(traced_copy(to, text, at, until, err));
            if (space != NULL) {
                TRY(traced_put(to, step->mark, step->n_mark, view_span(text, until), err));
            }
            at = until + 1;
        }
        TRY(add_piece(&scratch->pieces, begin, to->text.n, err));
    }
    scratch->pieces.text = traced_view(to);
    return LS_OK;
}

ls_status pretokenizer_run(const pretokenizer *pre, const text_view *text, bool at_start, pretokenizer_scratch *scratch,
                           ls_error *err) {
    scratch->pieces.text = *text;
    scratch->pieces.n = 0;
    TRY(add_piece(&scratch->pieces, 0, text->n, err));
    for (int i = 0; i < pre->n_steps; i++) {
        piece_list swap = scratch->before;
        scratch->before = scratch->pieces;
        scratch->pieces = swap;
        scratch->pieces.n = 0;
        switch (pre->step[i].kind) {
        case PRETOKENIZER_SPLIT:
            TRY(run_split(&pre->step[i], scratch, err));
            break;
        case PRETOKENIZER_SPACE:
            TRY(run_space(scratch, err));
            break;
        case PRETOKENIZER_META:
            TRY(run_meta(&pre->step[i], at_start, scratch, err));
            break;
        }
    }
    return LS_OK;
}
