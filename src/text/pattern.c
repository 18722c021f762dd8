/* See pattern.h. */
#include "text/pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdlib.h>
#include <string.h>

#include "text/oniguruma.h"
#include "text/utf8.h"

/* Limits on an untrusted pattern. A match may backtrack a fixed number of times for each byte of its text, which is
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

static ls_status check_size(size_t n, ls_error *err) {
    return n <= MAX_PATTERN_BYTES
               ? LS_OK
               : error_set(err, LS_EUNSUPPORTED, "a pattern of %zu bytes is not supported (at most %d)", n,
                           MAX_PATTERN_BYTES);
}

ls_status pattern_init_regex(pattern *p, const char *regex, size_t n, ls_error *err) {
    ls_status st;
    text_buffer translated = {0};
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (context == NULL) {
        TRY_GOTO(error_set(err, LS_ENOMEM, "out of memory: a regular expression"), fail);
    }
    TRY_GOTO(check_size(n, err), fail);
    TRY_GOTO(text_buffer_append(&translated, "", 0, err), fail); /* an empty pattern is a pattern */
    TRY_GOTO(oniguruma_to_pcre2(regex, n, &translated, err), fail);
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    int why;
    PCRE2_SIZE offset;
    uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
    p->code = pcre2_compile((PCRE2_SPTR)translated.data, translated.n, options, &why, &offset, context);
    if (p->code == NULL) {
        TRY_GOTO(pattern_error(why, offset, err), fail);
    }
    (void)pcre2_jit_compile(p->code, PCRE2_JIT_COMPLETE); /* without JIT pcre2_match interprets */
fail:
    pcre2_compile_context_free(context);
    text_buffer_deinit(&translated);
    return st;
}

ls_status pattern_init_literal(pattern *p, const char *literal, size_t n, ls_error *err) {
    if (n == 0) {
        return pattern_init_regex(p, "", 0, err); /* which matches everywhere */
    }
    TRY(check_size(n, err));
    p->literal = malloc(n);
    if (p->literal == NULL) {
        return error_set(err, LS_ENOMEM, "out of memory: a pattern of %zu bytes", n);
    }
    memcpy(p->literal, literal, n);
    p->n_literal = n;
    return LS_OK;
}

void pattern_deinit(pattern *p) {
    pcre2_code_free(p->code);
    free(p->literal);
    *p = (pattern){0};
}

void pattern_scratch_deinit(pattern_scratch *scratch) {
    pcre2_match_data_free(scratch->match);
    pcre2_match_context_free(scratch->context);
    pcre2_jit_stack_free(scratch->stack);
    *scratch = (pattern_scratch){0};
}

/* What matching needs beside the code; created on first use, kept for the life of the scratch. */
static ls_status prepare(pattern_scratch *scratch, ls_error *err) {
    if (scratch->match != NULL) {
        return LS_OK;
    }
    scratch->context = pcre2_match_context_create(NULL);
    scratch->stack = pcre2_jit_stack_create(JIT_STACK_MIN_BYTES, JIT_STACK_MAX_BYTES, NULL); /* NULL without JIT */
    scratch->match = pcre2_match_data_create(1, NULL);
    if (scratch->match == NULL || scratch->context == NULL) {
        pattern_scratch_deinit(scratch);
        return error_set(err, LS_ENOMEM, "out of memory: matching a regular expression");
    }
    pcre2_set_heap_limit(scratch->context, HEAP_LIMIT_KIB);
    pcre2_jit_stack_assign(scratch->context, NULL, scratch->stack);
    return LS_OK;
}

ls_status pattern_scan_init(pattern_scan *scan, const pattern *p, pattern_scratch *scratch, const char *text, size_t n,
                            ls_error *err) {
    *scan = (pattern_scan){.pattern = p, .scratch = scratch, .text = text, .n = n, .last_end = SIZE_MAX};
    if (p->code != NULL) {
        TRY(prepare(scratch, err));
        pcre2_set_match_limit(scratch->context, (uint32_t)(BACKTRACKS_BASE + BACKTRACKS_PER_BYTE * n));
    }
    return LS_OK;
}

/* The first match at or after scan->from. */
static ls_status find_regex(pattern_scan *scan, size_t *start, size_t *end, ls_error *err) {
    PCRE2_SPTR subject = (PCRE2_SPTR)scan->text;
    const pcre2_code *code = scan->pattern->code;
    pattern_scratch *scratch = scan->scratch;
    int rc = pcre2_match(code, subject, scan->n, scan->from, PCRE2_NO_UTF_CHECK, scratch->match, scratch->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT) { /* the interpreter keeps its stack on the heap */
        rc = pcre2_match(code, subject, scan->n, scan->from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, scratch->match,
                         scratch->context);
    }
    if (rc == PCRE2_ERROR_NOMATCH) {
        *start = scan->n + 1;
        return LS_OK;
    }
    if (rc < 0) {
        char why[160];
        pcre2_get_error_message(rc, (PCRE2_UCHAR *)why, sizeof why);
        return error_set(err, LS_EUNSUPPORTED, "looking in a text of %zu bytes for the tokenizer's pattern: %s",
                         scan->n, why);
    }
    const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(scratch->match);
    *start = ends[0];
    *end = ends[1];
    return LS_OK;
}

static void find_literal(const pattern_scan *scan, size_t *start, size_t *end) {
    const pattern *p = scan->pattern;
    const char *rest = scan->text + scan->from;
    size_t n_rest = scan->n - scan->from;
    const char *found =
        p->n_literal == 1 ? memchr(rest, p->literal[0], n_rest) : memmem(rest, n_rest, p->literal, p->n_literal);
    *start = found ? (size_t)(found - scan->text) : scan->n + 1;
    *end = *start + p->n_literal;
}

ls_status pattern_scan_next(pattern_scan *scan, size_t *start, size_t *end, ls_error *err) {
    while (scan->from <= scan->n) {
        if (scan->pattern->code == NULL) {
            find_literal(scan, start, end);
        } else {
            TRY(find_regex(scan, start, end, err));
        }
        if (*start > scan->n) {
            break;
        }
        if (*end > *start || *end != scan->last_end) {
            scan->from = scan->last_end = *end;
            return LS_OK;
        }
        do { /* look on behind the next character */
            scan->from++;
        } while (scan->from < scan->n && utf8_is_continuation(scan->text[scan->from]));
    }
    *start = scan->n + 1;
    return LS_OK;
}
