/*
 * Matmuls of many rows on Hopper: what gemm.c fills in and kern/gemm.cu reads.
 *
 * A tile is 256 rows of x by N columns of y (rows of W) by the k of one node, and belongs to a cluster of two blocks: each
 * has 128 of the rows. Its columns are two halves, which may be of different matrices: halves of q, k and v follow one
 * another; of gate and up a tile has the same columns, one a half.
 */
#ifndef LS_BACKEND_CUDA_GEMM_ARGS_H
#define LS_BACKEND_CUDA_GEMM_ARGS_H

#include "backend/cuda/kern/prefill_args.h"

enum {
    GEMM_CLUSTER = 2,   /* blocks */
    GEMM_ROWS = 128,    /* of x, a block's */
    GEMM_K = 64,        /* the 128 bytes that the swizzle of wgmma's operands works on */
    GEMM_THREADS = 384, /* two warpgroups that compute, one that loads: a thread of it, the rest gives its registers */
    GEMM_ABREAST = 8, /* tiles that have the same columns follow one another: so many rows of x stay in L2 with them */
    GEMM_STORE_BYTES = 8 * 16 * 128 /* results in 16 bits on their way out: of each computing warp 16 rows of 64 */
};
/* For kernels of N = n columns: blocks of k that are in shared memory or on their way. */
#define GEMM_STAGES(n) ((n) <= 96 ? 8 : (n) <= 160 ? 5 : 4)
#define GEMM_STAGE_BYTES(n) ((GEMM_ROWS + (n)) * GEMM_K * 2)
#define GEMM_SHARED_BYTES(n, in_16_bits)                                                                               \
    (GEMM_STAGES(n) * (GEMM_STAGE_BYTES(n) + 16) + ((in_16_bits) ? GEMM_STORE_BYTES : 0))

typedef struct gemm_matrix {
    const float *bias; /* [rows] or NULL */
    int32_t rows;
    int32_t y_first;    /* column of y */
    int32_t first_half; /* INT32_MAX: there are none */
} gemm_matrix;

typedef struct gemm_args {
    prefill_map x_map;                          /* [n_rows][k] in boxes of 128 rows and 64 columns */
    prefill_map w_map[3];                       /* [rows][k] in boxes of N / 2 rows and 64 columns */
    gemm_matrix matrix[3];                      /* q, k, v; gate, up; or one */
    int32_t n_rows, n_k;                        /* n_k: blocks of k in a node */
    int32_t n_across, n_down, n_nodes, n_tiles; /* tiles across the columns, down the rows; all of all nodes */
    void *y;                                    /* rows: f32 [n_nodes][n_rows][y_stride]; silu: act */
    int64_t node_stride;                        /* floats */
    int32_t y_stride;
    /* qkv, as prefill_qkv_args; the cache is of the run dtype */
    int32_t layer, n_pages, n_heads, n_kv, d_head;
    float eps;
    const cuda_step *step;
    const float *q_norm, *k_norm, *rope; /* norms or NULL */
    void *q, *k_cache, *v_cache;
} gemm_args;

#endif
