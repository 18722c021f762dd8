/* The perplexity of a text, for the command and for bench: windows of tokens that do not overlap. */
#ifndef LS_CLI_PERPLEXITY_H
#define LS_CLI_PERPLEXITY_H

#include "lockstep.h"

typedef struct perplexity_score {
    double nll; /* sum over the scored tokens */
    size_t n_scored, n_windows;
} perplexity_score;

/* Windows are as long as the engine takes, `at_once` of them at a time; progress shows on stderr. The engine may keep
 * requests of a failed run. */
ls_status perplexity_measure(ls_engine *engine, const int32_t *token, size_t n_tokens, size_t at_once, bool progress,
                             perplexity_score *out, ls_error *err);

#endif
