/*
 * Comparing two engines of one model, op by op. The public side is described in lockstep.h.
 *
 * A VIEW is what an op read or wrote as the model means it, whatever the ranks: q is [M][H d], of which each rank holds
 * its heads. verify_read and verify_write are the only functions that know how an engine keeps it, so that a back end
 * with memory of its own plugs in there.
 *
 * Engines with other numbers of ranks have other partial sums: there the sum of all parts is compared, and a tested
 * engine is given the reference's whole sum as rank 0's part, with zeros from the others.
 */
#ifndef LS_ENGINE_VERIFY_H
#define LS_ENGINE_VERIFY_H

#include "engine/engine.h"

typedef enum verify_view {
    VIEW_H,      /* [M][D], a copy a rank */
    VIEW_X,      /* [M][D] ([n_out][D] in the head), a copy a rank */
    VIEW_Q,      /* [M][H d] */
    VIEW_K,      /* [M][K d]: the step's rows of the cache */
    VIEW_V,      /* the same */
    VIEW_ATT,    /* [M][H d] */
    VIEW_ACT,    /* [M][F] */
    VIEW_PART,   /* [M][D], another one on each rank */
    VIEW_LOGITS, /* [n_out][V] */
    VIEW_SAMPLE, /* [n_out][2], another one on each rank: best logit and its token (-1: none) */
    VIEWS
} verify_view;

const char *verify_view_name(verify_view view);

/* Which part of a view's rows a rank holds: columns [first, first + count) of `whole`. */
typedef struct verify_part {
    int n_rows;
    int64_t first, count, whole;
} verify_part;

verify_part verify_part_of(const ls_engine *engine, int rank, const ls_op *op, verify_view view, const ls_step *step);
/* [n_rows][count] of one rank, as f32; rounded to the engine's formats on the way in. No op may run at that time. */
void verify_read(const ls_engine *engine, int rank, const ls_op *op, verify_view view, const ls_step *step, float *out);
void verify_write(ls_engine *engine, int rank, const ls_op *op, verify_view view, const ls_step *step, const float *in);

enum {
    VERIFY_SEQS = 16,      /* at most */
    VERIFY_JOINT_STEPS = 2 /* decode steps of all sequences */
};

/* Rows of the largest step, and tokens of the longest sequence. */
static inline int verify_rows(int n_prompt, int n_seqs) {
    return n_seqs > 1 ? n_prompt + n_seqs : n_prompt;
}
static inline int verify_tokens(int n_prompt, int n_decode, int n_seqs) {
    return n_prompt + n_decode + (n_seqs > 1 ? VERIFY_JOINT_STEPS : 0);
}

/* Engines to compare; both have room for n_seqs sequences of verify_tokens() and steps of verify_rows(). */
typedef struct verify_pair {
    ls_engine *tested, *reference;
    ls_quantization tested_quantization, reference_quantization;
    int n_seqs; /* 1 (or 0): the prompt alone */
} verify_pair;

/* Both runs, isolated and free, over prompts and the reference's greedy continuation. Overwrites the engines' buffers and
 * caches; neither may have requests. Fills all of *out but struct_size. */
ls_status verify_engines(const verify_pair *pair, const int32_t *prompt, int n_prompt, int n_decode,
                         ls_verify_report *out, ls_error *err);

#endif
