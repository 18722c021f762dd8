/*
 * Matmuls of 17 to 128 rows on Hopper: what wide.c fills in and kern/wide.cu reads.
 *
 * A tile is 128 rows of W (ffn_in: 64 of gate and the same 64 of up) and all rows of x, by all of k, k in blocks of 64. Where
 * there are few tiles, each is cut along k into n_pieces (a power of two) of equal length. A piece is what a block takes at
 * a time. Where tiles are cut depends on the shape and the chip alone, not on the number of rows.
 */
#ifndef LS_BACKEND_CUDA_WIDE_ARGS_H
#define LS_BACKEND_CUDA_WIDE_ARGS_H

#include "backend/cuda/kern/prefill_args.h"

enum {
    WIDE_TILE = 128,
    WIDE_K = 64,        /* the 128 bytes that the swizzle of wgmma's operands works on */
    WIDE_THREADS = 288, /* two warpgroups that compute, a warp that loads */
    WIDE_PARTS = 8,     /* = CUDA_NODES */
    WIDE_ROWS = 128,    /* of x, at most */
    WIDE_CHIP = 132,    /* multiprocessors, at most: what scratch is counted for */
    WIDE_BLOCKS = 2     /* of a multiprocessor */
};
/* For kernels of up to `n` rows of x: blocks of k that are in shared memory or on their way, of W and of x. A multiprocessor's 228 KB
 * hold two blocks, each of which costs 1 KB more than it asks for, or one with a long ring and blocks of the exchange. */
#define WIDE_STAGES(n, is_long) (((n) <= 32 ? 5 : (n) <= 64 ? 4 : 3) * ((is_long) ? 2 : 1))
#define WIDE_STAGE_BYTES(n) ((WIDE_TILE + (n)) * WIDE_K * 2)
#define WIDE_SHARED_BYTES(n, is_long) (WIDE_STAGES(n, is_long) * (WIDE_STAGE_BYTES(n) + 16) + 16)

typedef struct wide_work {
    int32_t n_tiles, n_k, n_pieces;
} wide_work;

typedef struct wide_matrix {
    const float *bias; /* [rows] or NULL */
    int32_t rows;
    int32_t y_first;    /* column of y */
    int32_t first_tile; /* INT32_MAX: there are no such tiles */
} wide_matrix;

enum { WIDE_QKV, WIDE_FFN_IN, WIDE_ROW, WIDE_HEAD };

typedef struct wide_args {
    prefill_map x_map;    /* [n_rows][k] in boxes of the kernel's rows and 64 columns */
    prefill_map w_map[3]; /* [rows][k] in boxes of 64 rows and 64 columns */
    const cuda_step *step;
    wide_work work;
    wide_matrix matrix[3]; /* q, k, v; gate, up; or one */
    int32_t kind;
    int32_t n_rows; /* of x */
    int32_t op_index;
    void *y; /* f32 [n_rows][y_stride]; ffn_in: act */
    int32_t y_stride;
    int32_t has_nodes;   /* row: pieces are nodes of y; else the last one to end adds them up */
    int64_t node_stride; /* floats */
    float *part;         /* [tile][piece][as the computing threads have their sums] */
    uint32_t *counter;   /* [tile]: pieces that have ended, zero */
    int32_t *fault;      /* head: of the step's rows */
} wide_args;

#endif
