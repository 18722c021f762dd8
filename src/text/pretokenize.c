/*
 * See pretokenize.h. A step reads the pieces of the step before (`before`) and writes `pieces`; the two lists change
 * places after each step. Only SPACE changes the text; it writes into the buffer that the current text is not in.
 */
#include "text/pretokenize.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "text/oniguruma.h"
#include "text/utf8.h"

const char pretokenizer_gpt2_pattern[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* Limits on an untrusted pattern. A match may backtrack a fixed number of times for each byte of its piece, which is
 * plenty for patterns that tokenizers have (they look at a byte a few times) and stops those that explode. */
enum {
    MAX_PATTERN_BYTES = 1 << 16,
    JIT_STACK_MIN_BYTES = 32 << 10,
    JIT_STACK_MAX_BYTES = 1 << 20,
    HEAP_LIMIT_KIB = 256 << 10,
    BACKTRACKS_BASE = 100000,
    BACKTRACKS_PER_BYTE = 16
};

static ls_status pattern_error(int code, size_t offset, ls_error *err) {
    char why[160];
    pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
    return error_set(err, LS_EUNSUPPORTED, "PCRE2 refuses the pattern at byte %zu: %s", offset, why);
}

static ls_status add_step(pretokenizer *pre, pretokenizer_step step, ls_error *err) {
    if (pre->n_steps == PRETOKENIZER_MAX_STEPS) {
        return error_set(err, LS_EUNSUPPORTED, "more than %d steps are not supported", PRETOKENIZER_MAX_STEPS);
    }
    pre->step[pre->n_steps++] = step;
    return LS_OK;
}

ls_status pretokenizer_add_split(pretokenizer *pre, const char *pattern, size_t n, ls_error *err) {
    ls_status st;
    text_buffer translated = {0};
    pcre2_code *code = NULL;
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (context == NULL) {
        TRY_GOTO(error_set(err, LS_ENOMEM, "out of memory: a regular expression"), fail);
    }
    if (n > MAX_PATTERN_BYTES) {
        TRY_GOTO(error_set(err, LS_EUNSUPPORTED, "a pattern of %zu bytes is not supported (at most %d)", n,
                           MAX_PATTERN_BYTES),
                 fail);
    }
    TRY_GOTO(text_buffer_append(&translated, "", 0, err), fail); /* an empty pattern is a pattern */
    TRY_GOTO(oniguruma_to_pcre2(pattern, n, &translated, err), fail);
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    int why;
    PCRE2_SIZE offset;
    uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
    code = pcre2_compile((PCRE2_SPTR)translated.data, translated.n, options, &why, &offset, context);
    if (code == NULL) {
        TRY_GOTO(pattern_error(why, offset, err), fail);
    }
    (void)pcre2_jit_compile(code, PCRE2_JIT_COMPLETE); /* without JIT pcre2_match interprets */
    TRY_GOTO(add_step(pre, (pretokenizer_step){.kind = PRETOKENIZER_SPLIT, .code = code}, err), fail);
    code = NULL; /* taken */
    st = LS_OK;
fail:
    pcre2_code_free(code);
    pcre2_compile_context_free(context);
    text_buffer_deinit(&translated);
    return st;
}

ls_status pretokenizer_add_space(pretokenizer *pre, ls_error *err) {
    return add_step(pre, (pretokenizer_step){.kind = PRETOKENIZER_SPACE}, err);
}

void pretokenizer_deinit(pretokenizer *pre) {
    for (int i = 0; i < pre->n_steps; i++) {
        pcre2_code_free(pre->step[i].code);
    }
    *pre = (pretokenizer){0};
}

void pretokenizer_scratch_deinit(pretokenizer_scratch *scratch) {
    free(scratch->pieces.end);
    free(scratch->before.end);
    text_buffer_deinit(&scratch->spaced);
    text_buffer_deinit(&scratch->spare);
    pcre2_match_data_free(scratch->match);
    pcre2_match_context_free(scratch->context);
    pcre2_jit_stack_free(scratch->stack);
    *scratch = (pretokenizer_scratch){0};
}

static ls_status add_piece(piece_list *pieces, size_t end, ls_error *err) {
    if (pieces->n == pieces->capacity) {
        size_t capacity = pieces->capacity ? 2 * pieces->capacity : 256;
        size_t *grown = realloc(pieces->end, capacity * sizeof *grown);
        if (grown == NULL) {
            return error_set(err, LS_ENOMEM, "out of memory: %zu pieces of text", capacity);
        }
        pieces->end = grown;
        pieces->capacity = capacity;
    }
    pieces->end[pieces->n++] = end;
    return LS_OK;
}

/* What matching needs beside the code; created on first use, kept for the life of the scratch. */
static ls_status prepare_match(pretokenizer_scratch *scratch, ls_error *err) {
    if (scratch->match != NULL) {
        return LS_OK;
    }
    scratch->context = pcre2_match_context_create(NULL);
    scratch->stack = pcre2_jit_stack_create(JIT_STACK_MIN_BYTES, JIT_STACK_MAX_BYTES, NULL); /* NULL without JIT */
    scratch->match = pcre2_match_data_create(1, NULL);
    if (scratch->match == NULL || scratch->context == NULL) {
        return error_set(err, LS_ENOMEM, "out of memory: matching a regular expression");
    }
    pcre2_set_heap_limit(scratch->context, HEAP_LIMIT_KIB);
    pcre2_jit_stack_assign(scratch->context, NULL, scratch->stack);
    return LS_OK;
}

/* The first match of the piece at or after `from`: its ends, or *start = n + 1 if there is none. */
static ls_status find_match(const pcre2_code *code, const char *piece, size_t n, size_t from,
                            pretokenizer_scratch *scratch, size_t *start, size_t *end, ls_error *err) {
    PCRE2_SPTR subject = (PCRE2_SPTR)piece;
    int rc = pcre2_match(code, subject, n, from, PCRE2_NO_UTF_CHECK, scratch->match, scratch->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) { /* the interpreter keeps its stack on the heap */
        rc = pcre2_match(code, subject, n, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, scratch->match, scratch->context);
    }
    if (rc == PCRE2_ERROR_NOMATCH) {
        *start = n + 1;
        return LS_OK;
    }
    if (rc < 0) {
        char why[160];
        pcre2_get_error_message(rc, (PCRE2_UCHAR *)why, sizeof why);
        return error_set(err, LS_EUNSUPPORTED, "splitting a text of %zu bytes by the tokenizer's pattern: %s", n, why);
    }
    const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(scratch->match);
    *start = ends[0];
    *end = ends[1];
    return LS_OK;
}

/* Splits one piece that begins at `offset` of the whole text, as Oniguruma's find_iter walks: an empty match right
 * behind a match does not count. */
static ls_status split_piece(const pcre2_code *code, const char *piece, size_t n, size_t offset,
                             pretokenizer_scratch *scratch, ls_error *err) {
    pcre2_set_match_limit(scratch->context, (uint32_t)(BACKTRACKS_BASE + BACKTRACKS_PER_BYTE * n));
    size_t done = 0; /* pieces were added up to here */
    for (size_t from = 0; from < n;) {
        size_t start = 0, end = 0;
        TRY(find_match(code, piece, n, from, scratch, &start, &end, err));
        if (start > n) {
            break;
        }
        if (start > done) {
            TRY(add_piece(&scratch->pieces, offset + start, err));
        }
        if (end > start) {
            TRY(add_piece(&scratch->pieces, offset + end, err));
        }
        done = end;
        from = end;
        if (end == start) { /* look on behind the next character */
            do {
                from++;
            } while (from < n && utf8_is_continuation(piece[from]));
        }
    }
    return done < n ? add_piece(&scratch->pieces, offset + n, err) : LS_OK;
}

static ls_status run_split(const pcre2_code *code, pretokenizer_scratch *scratch, ls_error *err) {
    TRY(prepare_match(scratch, err));
    const piece_list *before = &scratch->before;
    scratch->pieces.text = before->text;
    for (size_t i = 0, start = 0; i < before->n; start = before->end[i++]) {
        TRY(split_piece(code, before->text + start, before->end[i] - start, start, scratch, err));
    }
    return LS_OK;
}

static ls_status run_space(pretokenizer_scratch *scratch, ls_error *err) {
    const piece_list *before = &scratch->before;
    text_buffer swap = scratch->spare;
    scratch->spare = scratch->spaced; /* which may be what before->text lies in */
    scratch->spaced = swap;
    text_buffer_clear(&scratch->spaced);
    for (size_t i = 0, start = 0; i < before->n; start = before->end[i++]) {
        if (before->text[start] != ' ') {
            TRY(text_buffer_append(&scratch->spaced, " ", 1, err));
        }
        TRY(text_buffer_append(&scratch->spaced, before->text + start, before->end[i] - start, err));
        TRY(add_piece(&scratch->pieces, scratch->spaced.n, err));
    }
    scratch->pieces.text = scratch->spaced.data;
    return LS_OK;
}

ls_status pretokenizer_run(const pretokenizer *pre, const char *text, size_t n, pretokenizer_scratch *scratch,
                           ls_error *err) {
    scratch->pieces.text = text;
    scratch->pieces.n = 0;
    TRY(add_piece(&scratch->pieces, n, err));
    for (int i = 0; i < pre->n_steps; i++) {
        piece_list swap = scratch->before;
        scratch->before = scratch->pieces;
        scratch->pieces = swap;
        scratch->pieces.n = 0;
        switch (pre->step[i].kind) {
        case PRETOKENIZER_SPLIT:
            TRY(run_split(pre->step[i].code, scratch, err));
            break;
        case PRETOKENIZER_SPACE:
            TRY(run_space(scratch, err));
            break;
        }
    }
    return LS_OK;
}
