/*
 * The sampler: from every rank's offer to one token. Edits, allowed ids, temperature, top-k, top-p, min-p, then Gumbel-max
 * (ops.h, at op_sample).
 *
 * The offers are enough for greedy, for unfiltered sampling, for top-k up to 256 and for top-p and min-p whenever the best
 * 256 hold what they keep; otherwise the whole row is gathered. Which way was taken never changes the token: sums run over
 * the same values in the same order.
 *
 * Filters as in transformers' TopKLogitsWarper, TopPLogitsWarper and MinPLogitsWarper: top-p counts the mass that top-k
 * left, and keeps the shortest prefix of the tokens, by falling probability, whose mass reaches top-p; min-p keeps those
 * with at least its share of the best one's probability. At a tie the lower id comes first.
 */
#ifndef LS_ENGINE_SAMPLER_H
#define LS_ENGINE_SAMPLER_H

#include "backend/ops.h"

/* One row on R ranks. */
typedef struct sampler_row {
    const ls_sample_part *part[LS_MAX_RANKS]; /* this row's offer of each rank */
    const float *logits[LS_MAX_RANKS];        /* this row's part of the logits of each rank */
    int vocab_first[LS_MAX_RANKS], vocab_count[LS_MAX_RANKS];
    int n_ranks;
} sampler_row;

/* candidate, edited: scratch for the whole vocabulary. Never fails: a row of finite logits gives a token, or -1 if every
 * token is forbidden. */
int32_t sampler_pick(const sampler_row *row, const ls_sample_params *how, ls_candidate *candidate, float *edited);

/* Log probability of token id by the logits as they came, and how many tokens are more likely. The offers must have been
 * made with n_top >= 0. */
float sampler_logprob(const sampler_row *row, int32_t id, int *rank);
/* The n most likely tokens, at most that n_top, and their log probabilities. Returns how many there are. */
int sampler_top_logprobs(const sampler_row *row, int n, ls_candidate *out);

#endif
