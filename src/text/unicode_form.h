/* Unicode normal forms, with the tables that Hugging Face `tokenizers` has and its rules for spans. */
#ifndef LS_TEXT_UNICODE_FORM_H
#define LS_TEXT_UNICODE_FORM_H

#include "text/traced.h"

typedef enum unicode_form { UNICODE_NFC, UNICODE_NFKC, UNICODE_NFD, UNICODE_NFKD } unicode_form;

/* A character of the result. `change` says what it cost: 0 it replaces one character of the source, 1 it is additional,
 * -n it replaces n + 1 of them. */
typedef struct form_point {
    int32_t point, change;
} form_point;

/* Working memory of one thread; start zeroed. */
typedef struct form_scratch {
    form_point *point; /* of the run at hand, twice: the second half is for sorting */
    size_t n_points;
} form_scratch;
void form_scratch_deinit(form_scratch *scratch);

/* True, with the place of the first suspect in *at, if the text may have to change. */
bool unicode_form_suspect(unicode_form form, const char *text, size_t n, size_t *at);

/* Appends the normal form of the text. Linear, whatever the text. */
ls_status unicode_normalize(unicode_form form, const text_view *from, form_scratch *scratch, traced_text *to,
                            ls_error *err);

/* True of the few characters that NFC leaves alone here although newer Unicode does not (see unicode_form.c). */
bool unicode_is_newer_mark(int32_t point);

#endif
