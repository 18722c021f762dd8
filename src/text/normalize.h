/* Normalisation of text before it is split: NFC, with the tables that Hugging Face `tokenizers` has. */
#ifndef LS_TEXT_NORMALIZE_H
#define LS_TEXT_NORMALIZE_H

#include "text/text_buffer.h"

/* Working memory of one thread; start zeroed. */
typedef struct normalize_scratch {
    text_buffer text;
    int32_t *point; /* code points of the run at hand, twice: the second half is for sorting */
    size_t n_points;
} normalize_scratch;
void normalize_scratch_deinit(normalize_scratch *scratch);

/* NFC of valid UTF-8. *out is the text itself where that is in NFC at first sight, else borrowed from the scratch. */
ls_status normalize_nfc(const char *text, size_t n, normalize_scratch *scratch, const char **out, size_t *n_out,
                        ls_error *err);

/* True of the few characters that NFC leaves alone here although newer Unicode does not (see normalize.c). */
bool normalize_is_newer_mark(int32_t point);

#endif
