/*
 * Weights: from a checkpoint (or from a hash) into one rank's arena, sharded and converted on the way.
 *
 * Each rank reads exactly its own part of each tensor from the mapped files, in parallel with the other ranks; nothing
 * is staged. A shape that is not the program's, a dtype that is no weight, a missing tensor, an infinity or a NaN is an
 * error that names file and tensor.
 *
 * Dummy weights: element i (row-major index in the whole tensor) of tensor `name` is a hash of (seed, name, i), so it is
 * the same at any R, on any device, and in tools/dummy_weights.py, which writes the same checkpoint for transformers:
 *     h = fnv1a64(name) ^ seed * G;   x = mix(h + (i + 1) * G);   v = 2 (x >> 40) 2^-24 - 1, with G and mix of splitmix64
 *     2-D: v * sqrt(3 / cols) (variance 1 / cols);  1-D "...norm.weight": 1 + v / 10;  other 1-D: v / 2
 * computed in f32 and rounded to the checkpoint's dtype.
 *
 * int8: each leaf of a row is quantised (ops.h section 2) from the checkpoint's values.
 */
#ifndef LS_MODEL_WEIGHTS_H
#define LS_MODEL_WEIGHTS_H

#include "base/arena.h"
#include "file/safetensors.h"
#include "model/program.h"

/* Where weights come from: checkpoint, or NULL for dummy weights. */
typedef struct weight_source {
    const ls_checkpoint *checkpoint;
    uint64_t dummy_seed;
    ls_dtype dummy_dtype; /* what the values are rounded to first: the spec's dtype */
} weight_source;

/* Checks that every weight of the program is in the checkpoint with its shape and a usable dtype. Cheap: reads no data. */
ls_status weights_check(const ls_program *program, const weight_source *source, ls_error *err);

/* Places the weights in the arena, unfilled. weight[program->n_weights] is the caller's; NULL while counting. */
ls_status weights_place(const ls_program *program, ls_arena *arena, int tag, ls_weight *weight, ls_error *err);

/* The dummy formula of a weight: element i is offset + scale * v(hash, i). */
typedef struct dummy_formula {
    uint64_t hash;
    float offset, scale;
} dummy_formula;
dummy_formula weight_dummy(const weight_slot *slot, uint64_t seed);

/* A weight as it lies in its file, for back ends that convert it themselves. */
typedef struct weight_raw {
    const ls_tensor *tensor; /* NULL: dummy, made from the formula */
    ls_dtype dtype;          /* of the tensor, or what dummy values are rounded to first */
} weight_raw;
ls_status weight_raw_find(const ls_program *program, const weight_source *source, int i_weight, weight_raw *out,
                          ls_error *err);
/* Rows [first_row, last_row) of this rank's part, unconverted and without gaps, into `to`. From several threads at once. */
void weight_raw_copy(const weight_slot *slot, const weight_raw *raw, int64_t first_row, int64_t last_row, void *to);

/* Rows [first_row, last_row) of this rank's part of weight i into data, without gaps; int8: their scales into scale.
 * Called from several threads at once. */
ls_status weight_load_rows(const ls_program *program, const weight_source *source, int i_weight, int64_t first_row,
                           int64_t last_row, void *data, float *scale, ls_error *err);

/* Fills rows [first_row, last_row) of weight i (of this rank's part). Called from several threads at once, for different
 * weights or rows. */
ls_status weight_load(const ls_program *program, const weight_source *source, int i_weight, const ls_weight *weight,
                      int64_t first_row, int64_t last_row, ls_error *err);

#endif
