/*
 * What a tokenizer looks for in text: a string, or a regular expression.
 *
 * Expressions are written for Oniguruma, which is what Hugging Face `tokenizers` uses, and run by PCRE2: what the two
 * read differently is translated or refused (oniguruma.h). One difference is left: letters and digits newer than
 * Unicode 14 are none to PCRE2 10.42. Expressions are untrusted: matching runs under limits on steps and memory.
 */
#ifndef LS_TEXT_PATTERN_H
#define LS_TEXT_PATTERN_H

#include "base/error.h"

typedef struct pattern {
    struct pcre2_real_code_8 *code; /* NULL: a string */
    char *literal;
    size_t n_literal;
} pattern;

/* `p` is zeroed before. The text of the pattern is copied. */
ls_status pattern_init_regex(pattern *p, const char *regex, size_t n, ls_error *err);
ls_status pattern_init_literal(pattern *p, const char *literal, size_t n, ls_error *err);
void pattern_deinit(pattern *p); /* accepts a zeroed one */

/* Working memory of one thread; start zeroed. */
typedef struct pattern_scratch {
    struct pcre2_real_match_data_8 *match;
    struct pcre2_real_match_context_8 *context;
    struct pcre2_real_jit_stack_8 *stack;
} pattern_scratch;
void pattern_scratch_deinit(pattern_scratch *scratch);

/* Walks over the matches in a text, which do not overlap, as Oniguruma's find_iter does: an empty match right behind a
 * match does not count. */
typedef struct pattern_scan {
    const pattern *pattern;
    pattern_scratch *scratch;
    const char *text;
    size_t n;
    size_t from;     /* looked at up to here */
    size_t last_end; /* of the last match; SIZE_MAX before the first */
} pattern_scan;

/* text: valid UTF-8, n > 0. */
ls_status pattern_scan_init(pattern_scan *scan, const pattern *p, pattern_scratch *scratch, const char *text, size_t n,
                            ls_error *err);
/* The next match, or *start = n + 1 at the end. */
ls_status pattern_scan_next(pattern_scan *scan, size_t *start, size_t *end, ls_error *err);

#endif
