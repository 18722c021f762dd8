/*
 * Pre-tokenisation: text to pieces, which byte pair encoding never joins.
 *
 * A pretokenizer is a list of steps, each of which works on every piece that the step before left, as if the piece were
 * a text of its own.
 */
#ifndef LS_TEXT_PRETOKENIZE_H
#define LS_TEXT_PRETOKENIZE_H

#include "text/pattern.h"
#include "text/traced.h"

enum { PRETOKENIZER_MAX_STEPS = 16, PRETOKENIZER_MAX_MARK = 4 };

/* GPT-2's pattern, which ByteLevel splits by when use_regex is true. */
extern const char pretokenizer_gpt2_pattern[];

typedef enum pretokenizer_kind {
    PRETOKENIZER_SPLIT, /* by the matches of the pattern */
    PRETOKENIZER_SPACE, /* a space before every piece that does not begin with one (ByteLevel's add_prefix_space) */
    PRETOKENIZER_META   /* spaces become `mark`; where `prepend` says so a piece begins with one (Metaspace) */
} pretokenizer_kind;

/* What becomes of a match. */
typedef enum split_behavior {
    SPLIT_ISOLATED, /* a piece of its own */
    SPLIT_REMOVED,
    SPLIT_MERGED_WITH_PREVIOUS,
    SPLIT_MERGED_WITH_NEXT,
    SPLIT_CONTIGUOUS /* neighbouring matches are one piece */
} split_behavior;

typedef enum prepend_scheme { PREPEND_NEVER, PREPEND_FIRST, PREPEND_ALWAYS } prepend_scheme;

typedef struct pretokenizer_step {
    pretokenizer_kind kind;
    pattern pattern;         /* of SPLIT */
    split_behavior behavior; /* of SPLIT */
    bool invert;             /* of SPLIT: what lies between matches counts as the match */
    prepend_scheme prepend;  /* of META; FIRST: only at the very start of the input */
    char mark[PRETOKENIZER_MAX_MARK];
    size_t n_mark;
} pretokenizer_step;

typedef struct pretokenizer {
    pretokenizer_step step[PRETOKENIZER_MAX_STEPS];
    int n_steps;
} pretokenizer;

/* Takes the step's memory, also on failure. */
ls_status pretokenizer_add(pretokenizer *pre, pretokenizer_step *step, ls_error *err);
void pretokenizer_deinit(pretokenizer *pre); /* accepts a zeroed one */

/* True if pieces depend on their place in the input, so that a rewritten text must have its spans. */
bool pretokenizer_needs_spans(const pretokenizer *pre, bool text_was_rewritten);

/* Piece i is text[piece[i].start .. piece[i].end), never empty. */
typedef struct piece_list {
    text_view text; /* borrowed: the text given, or a buffer of the scratch */
    text_span *piece;
    size_t n, capacity;
} piece_list;

/* Working memory of one thread; start zeroed. `pieces` is the result of the last run. */
typedef struct pretokenizer_scratch {
    piece_list pieces, before; /* of this step and the one before */
    traced_text text[2];       /* steps that rewrite write into the one that they do not read */
    pattern_scratch pattern;
} pretokenizer_scratch;
void pretokenizer_scratch_deinit(pretokenizer_scratch *scratch);

/* Splits a text that is not empty into scratch->pieces. `at_start`: it lies at the start of the input (only looked at
 * where the text has no spans). */
ls_status pretokenizer_run(const pretokenizer *pre, const text_view *text, bool at_start, pretokenizer_scratch *scratch,
                           ls_error *err);

#endif
