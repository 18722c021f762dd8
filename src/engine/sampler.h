/*
 * The sampler: from every rank's offer to one token. Temperature, top-k, top-p, then Gumbel-max (ops.h, at op_sample).
 *
 * The offers are enough for greedy, for unfiltered sampling, for top-k up to 256 and for top-p whenever the best 256 hold
 * the mass; otherwise the whole row is gathered. Which way was taken never changes the token: sums run over the same
 * values in the same order.
 *
 * Filters as in transformers' TopKLogitsWarper and TopPLogitsWarper: top-p counts the mass that top-k left, and keeps the
 * shortest prefix of the tokens, by falling probability, whose mass reaches top-p. At a tie the lower id comes first.
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

/* scratch: room for the whole vocabulary. Never fails: a row of finite logits always gives a token. */
int32_t sampler_pick(const sampler_row *row, const ls_sample_params *how, ls_candidate *scratch);

#endif
