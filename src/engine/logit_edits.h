/*
 * The edits to a request's logits (ls_logit_edit in ops.h), kept up to date as its answer grows: logit bias, penalties,
 * bad words, and the tokens that min_tokens forbids.
 *
 * Sparse: a record for each token id that any of them concerns, found through a hash table. Everything is allocated when
 * the request is submitted; a new token changes one record.
 */
#ifndef LS_ENGINE_LOGIT_EDITS_H
#define LS_ENGINE_LOGIT_EDITS_H

#include "backend/ops.h"
#include "text/tokenizer.h"

/* Why a record's token is edited. */
typedef struct edit_cause {
    float bias;
    int32_t n_in_answer;
    bool seen;        /* in prompt or answer */
    bool ends_answer; /* would stop it: forbidden before min_tokens */
    bool bad_word;    /* would complete one, as the text stands */
} edit_cause;

typedef struct logit_edits {
    float repetition, presence, frequency;
    int min_tokens;
    ls_logit_edit *edit; /* [capacity], n in use: what ops read */
    edit_cause *cause;   /* [capacity] */
    int n, capacity;
    int32_t *slot; /* [n_slots] hash table: index + 1 into edit, 0 empty */
    int n_slots;   /* a power of two */
    int32_t *word; /* bad words one after the other, each: length, ids */
    int n_word;
} logit_edits;

/* What of a request's parameters is edits. `ending`: the tokens that would stop it. token_capacity: prompt and answer. The
 * tokenizer may be NULL if there are no bad words. A failed one must still be deinitialised. */
ls_status logit_edits_init(logit_edits *edits, const ls_request_params *params, double repetition,
                           const int32_t *ending, int n_ending, const ls_tokenizer *tokenizer, int n_vocab,
                           int token_capacity, ls_error *err);
void logit_edits_deinit(logit_edits *edits); /* accepts a zeroed one */

/* A token of the prompt or of the answer, in order. */
void logit_edits_push(logit_edits *edits, int32_t token, bool in_answer);
/* Makes edit[0 .. n) what the draw after token[n_tokens - 1] needs. */
void logit_edits_prepare(logit_edits *edits, const int32_t *token, int n_prompt, int n_tokens);

#endif
