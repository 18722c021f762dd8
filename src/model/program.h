/*
 * The program: the op list that one rank runs for one forward pass, and the weights those ops read. Built from the spec
 * alone, before anything is loaded; the same on all ranks but for offsets. Back ends, the loader, the memory plan and
 * the timeline all read it: a fact about the model stands here once.
 */
#ifndef LS_MODEL_PROGRAM_H
#define LS_MODEL_PROGRAM_H

#include "backend/ops.h"
#include "model/spec.h"
#include "rank/shard.h"

/* A weight that the program needs: where it comes from, and which part of it this rank holds. */
typedef struct weight_slot {
    char name[96]; /* tensor name in the checkpoint */
    shard_rule rule;
    int n_dims;           /* 1 or 2 */
    int64_t rows, cols;   /* of the whole tensor; rows = 1 for 1-D */
    shard_range row, col; /* this rank's part */
    ls_dtype format;      /* run dtype or int8 for 2-D, f32 for 1-D */
    int n_leaves;         /* int8: leaves of this rank's columns, each with a scale; else 0 */
} weight_slot;

typedef struct ls_program {
    const ls_spec *spec; /* borrowed; outlives the program */
    ls_group group;
    ls_dtype dtype;
    ls_quantization quantization;
    int n_ops, n_weights, n_exchanges;
    ls_op *op;
    weight_slot *weight;
    int64_t weight_bytes; /* of all slots, this rank */
    int64_t read_bytes;   /* weights read by one step (the embedding counts only where it is the head) */
    int64_t flops_per_row;
} ls_program;

/* `quantization` decides the format of matrices; how they are multiplied is the bind's business. */
ls_status program_build(ls_program **out, const ls_spec *spec, ls_group group, ls_dtype dtype,
                        ls_quantization quantization, ls_error *err);
void program_destroy(ls_program **program); /* accepts NULL inside */

static inline int64_t slot_scale_bytes(const weight_slot *slot) {
    return slot->row.count * slot->n_leaves * (int64_t)sizeof(float);
}
/* With scales. */
static inline int64_t slot_bytes(const weight_slot *slot) {
    return slot->row.count * slot->col.count * (int64_t)ls_dtype_bytes(slot->format) + slot_scale_bytes(slot);
}

/* ---- For family_*.c: appends one op each; weights are named after HF's modules under "model.layers.<i>." ---------- */

typedef struct program_builder program_builder;

const ls_spec *builder_spec(const program_builder *builder);
ls_status build_qkv(program_builder *builder, int i_layer, bool bias, bool qk_norm, ls_error *err);
ls_status build_attn(program_builder *builder, int i_layer, int window_tokens, ls_error *err);
ls_status build_out(program_builder *builder, int i_layer, bool bias, ls_error *err); /* with its exchange */
ls_status build_ffn_in(program_builder *builder, int i_layer, bool bias, ls_error *err);
ls_status build_ffn_out(program_builder *builder, int i_layer, bool bias, ls_error *err); /* with its exchange */

#endif
