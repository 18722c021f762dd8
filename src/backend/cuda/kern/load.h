/* Arguments of kern/load.cu. */
#ifndef LS_BACKEND_CUDA_LOAD_ARGS_H
#define LS_BACKEND_CUDA_LOAD_ARGS_H

#include <stdint.h>

enum { LOAD_F32 = 1, LOAD_BF16 = 2, LOAD_F16 = 3, LOAD_INT8 = 4 }; /* = ls_dtype */
enum { LOAD_LEAVES = 8, LOAD_GROUP = 8, LOAD_THREADS = 256, LOAD_UNROLL = 4, LOAD_STAGE = 1024 };

/* Rows of a rank's part of a tensor. Addresses are as the device sees them: `in` and `fault` may lie in pinned memory of the
 * host. */
typedef struct load_args {
    uint64_t in;    /* [rows][cols] of `dtype`, as in the file; 0: dummy values */
    uint64_t out;   /* [rows][cols] of `format` */
    uint64_t scale; /* int8: f32 [rows][n_leaves] */
    uint64_t fault; /* u32: gets `mark` if a value is not finite */
    int64_t rows, cols;
    int32_t dtype, format;
    uint32_t mark;
    int32_t n_leaves;                /* int8 */
    int32_t border[LOAD_LEAVES + 1]; /* leaf i is columns [border[i], border[i + 1]) */
    /* Dummy values, rounded to dtype: element (row, col) is offset + factor * v(hash, its index in the whole tensor). */
    float offset, factor;
    uint64_t hash;
    int64_t first_row, first_col, all_cols; /* where the rows lie in it */
} load_args;

#endif
