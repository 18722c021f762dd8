/*
 * Pre-tokenisation: text to pieces, which byte pair encoding never joins.
 *
 * A pretokenizer is a list of steps, each of which works on every piece that the step before left, as if the piece were
 * a text of its own. No step drops text, so that pieces always lie end to end.
 *
 * Patterns are written for Oniguruma, which is what Hugging Face `tokenizers` uses, and run by PCRE2: what the two read
 * differently is translated or refused. One difference is left: letters and digits newer than Unicode 14 are none to
 * PCRE2 10.42.
 */
#ifndef LS_TEXT_PRETOKENIZE_H
#define LS_TEXT_PRETOKENIZE_H

#include "text/text_buffer.h"

enum { PRETOKENIZER_MAX_STEPS = 16 };

/* GPT-2's pattern, which ByteLevel splits by when use_regex is true. */
extern const char pretokenizer_gpt2_pattern[];

typedef enum pretokenizer_kind {
    PRETOKENIZER_SPLIT, /* matches of the pattern and what lies between them become pieces ("Isolated") */
    PRETOKENIZER_SPACE  /* a space before every piece that does not begin with one */
} pretokenizer_kind;

typedef struct pretokenizer_step {
    pretokenizer_kind kind;
    struct pcre2_real_code_8 *code; /* of SPLIT */
} pretokenizer_step;

typedef struct pretokenizer {
    pretokenizer_step step[PRETOKENIZER_MAX_STEPS];
    int n_steps;
} pretokenizer;

ls_status pretokenizer_add_split(pretokenizer *pre, const char *pattern, size_t n, ls_error *err);
ls_status pretokenizer_add_space(pretokenizer *pre, ls_error *err);
void pretokenizer_deinit(pretokenizer *pre); /* accepts a zeroed one */

/* Piece i is text[i > 0 ? end[i - 1] : 0 .. end[i]), never empty. */
typedef struct piece_list {
    const char *text; /* borrowed: the text given, or a buffer of the scratch */
    size_t *end;
    size_t n, capacity;
} piece_list;

/* Working memory of one thread; start zeroed. `pieces` is the result of the last run. */
typedef struct pretokenizer_scratch {
    piece_list pieces, before; /* of this step and the one before */
    text_buffer spaced, spare;
    struct pcre2_real_match_data_8 *match;
    struct pcre2_real_match_context_8 *context;
    struct pcre2_real_jit_stack_8 *stack;
} pretokenizer_scratch;
void pretokenizer_scratch_deinit(pretokenizer_scratch *scratch);

/* Splits text (valid UTF-8, n > 0) into scratch->pieces. */
ls_status pretokenizer_run(const pretokenizer *pre, const char *text, size_t n, pretokenizer_scratch *scratch,
                           ls_error *err);

#endif
