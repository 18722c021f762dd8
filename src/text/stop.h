/*
 * Stop strings: generated text arrives in pieces, and ends before the first stop string in it, wherever the pieces are
 * cut. Text that may still turn out to begin a stop string is held back.
 *
 * "First" is the match that ends first; of several that end together the longest, which begins first. That is what a
 * search after each character would find.
 *
 * One automaton (Aho and Corasick's, over bytes) for all strings, so that a byte costs the same however many there are.
 */
#ifndef LS_TEXT_STOP_H
#define LS_TEXT_STOP_H

#include "text/text_buffer.h"

enum { STOP_MAX_STRINGS = 64, STOP_MAX_BYTES = 4096 /* of all strings together */ };

typedef struct stop_matcher {
    struct stop_node *node; /* owned; NULL: no stop strings */
    char *longest;          /* owned: room for what is held back */
    size_t n_nodes, n_longest;
    bool include_stop; /* the text ends behind the stop string instead of before it */
    uint16_t state;    /* node reached; its depth is how many bytes are held back */
    int found;         /* index of the stop string that ended the text, or -1 */
} stop_matcher;

/* Strings are any bytes, copied; LS_EINVAL if one is empty or they are beyond the limits. `m` need not be zeroed. */
ls_status stop_init(stop_matcher *m, const char *const *string, const size_t *n_bytes, size_t n_strings,
                    bool include_stop, ls_error *err);
void stop_deinit(stop_matcher *m); /* accepts a zeroed one */
void stop_reset(stop_matcher *m);  /* for another text */

/* Takes the next piece of text and appends what is certain to *out. m->found >= 0 afterwards: a stop string was found, *out
 * has the end of the text, further pieces are ignored. On failure (memory) nothing has happened. */
ls_status stop_push(stop_matcher *m, const char *text, size_t n, text_buffer *out, ls_error *err);
/* The text ends without a stop string: appends what was held back. */
ls_status stop_flush(stop_matcher *m, text_buffer *out, ls_error *err);

#endif
