/* Arguments of kern/load.cu. */
#ifndef LS_BACKEND_CUDA_LOAD_H
#define LS_BACKEND_CUDA_LOAD_H

#include <stdint.h>

enum { LOAD_F32 = 1, LOAD_BF16 = 2, LOAD_F16 = 3 }; /* = ls_dtype */

/* A rank's part [rows][cols] of a tensor that has all_cols columns. */
typedef struct load_dummy_args {
    uint64_t out;  /* device address */
    uint64_t hash; /* of seed and name */
    int64_t rows, cols, first_row, first_col, all_cols;
    float offset, scale;
    int32_t dtype, format; /* rounded to this, stored as that */
} load_dummy_args;

#endif
