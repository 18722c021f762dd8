/*
 * Normalisation of text before it is split: a list of steps, each of which rewrites the whole text.
 */
#ifndef LS_TEXT_NORMALIZE_H
#define LS_TEXT_NORMALIZE_H

#include "text/pattern.h"
#include "text/unicode_form.h"

enum { NORMALIZER_MAX_STEPS = 16 };

typedef enum normalizer_kind {
    NORMALIZER_FORM,      /* a Unicode normal form */
    NORMALIZER_LOWERCASE, /* each character alone */
    NORMALIZER_STRIP,     /* white space at the ends goes */
    NORMALIZER_REPLACE,   /* each match of the pattern becomes `content` */
    NORMALIZER_PREPEND    /* `content` in front of a text that is not empty */
} normalizer_kind;

typedef struct normalizer_step {
    normalizer_kind kind;
    unicode_form form;
    bool left, right; /* of STRIP */
    pattern pattern;  /* of REPLACE */
    text_buffer content;
} normalizer_step;

typedef struct normalizer {
    normalizer_step step[NORMALIZER_MAX_STEPS];
    int n_steps;
} normalizer;

/* Takes the step's memory, also on failure. */
ls_status normalizer_add(normalizer *n, normalizer_step *step, ls_error *err);
void normalizer_deinit(normalizer *n); /* accepts a zeroed one */

/* Working memory of one thread; start zeroed. */
typedef struct normalize_scratch {
    traced_text text[2]; /* steps write into the one that they do not read */
    form_scratch form;
    pattern_scratch pattern;
} normalize_scratch;
void normalize_scratch_deinit(normalize_scratch *scratch);

/* *out is the text itself where nothing changes, else borrowed from the scratch. */
ls_status normalizer_run(const normalizer *n, const text_view *text, normalize_scratch *scratch, text_view *out,
                         ls_error *err);

#endif
