/*
 * Arguments of the prefill kernels: filled by prefill.c, read by prefill_*.cu. Pointers are device addresses. Each kernel
 * takes one struct by value. `dtype` fields are ls_dtype; rows are f32, or the run dtype where it says act.
 */
#ifndef LS_BACKEND_CUDA_PREFILL_ARGS_H
#define LS_BACKEND_CUDA_PREFILL_ARGS_H

#include "backend/cuda/kern/step.h"

enum {
    PREFILL_LEAVES = 8, /* = LS_LEAVES, LS_LEAF_ALIGN and LS_MAX_HEAD of ops.h; prefill.c asserts it */
    PREFILL_LEAF_ALIGN = 16,
    PREFILL_MAX_HEAD = 256,
    PREFILL_ROW_THREADS = 256, /* a block of the kernels that take a row a block */
    PREFILL_HEAD_WARPS = 4,    /* of the qkv kernel: a head of a row each */

    /* The matmul kernels: y tiles of rows of x by rows of w, K in steps. */
    PREFILL_MM_THREADS = 256,
    PREFILL_MM_N = 128,
    PREFILL_MM_K = 32,
    PREFILL_MM_STAGES = 4,
    PREFILL_MM_PAD = 8, /* elements behind each row of a tile of 16-bit values, so that ldmatrix meets no conflicts */
    PREFILL_MM_PAD_BYTES = 16, /* the same behind a row of int8 */
    PREFILL_MM_F32_TILE = 64,

    /* The attention kernels. */
    PREFILL_ATTN_ROWS = 64, /* (row, query head of the group) pairs of a tile of the mma kernel */
    PREFILL_ATTN_THREADS = 128,
    PREFILL_ATTN_PAD = 8,
    PREFILL_ATTN_ANY_ROWS = 32, /* the kernel for any head size: 32 pairs, 32 keys */
    PREFILL_ATTN_ANY_THREADS = 256
};

/* Leaves [first, first + count) of k_total elements: where the scales of an int8 weight change. */
typedef struct prefill_leaves {
    int32_t k_total, first, count;
} prefill_leaves;

typedef struct prefill_matmul_args {
    const void *x;      /* act [m][k] */
    const void *w;      /* [n][k] of x's dtype, or int8 */
    const float *scale; /* int8: [n][leaves.count] */
    float *y;           /* [m][y_stride] */
    int64_t y_stride;
    int32_t m, n, k;
    int32_t x_aligned, w_aligned; /* rows begin on 16-byte borders */
    prefill_leaves leaves;
} prefill_matmul_args;

/* out[rows][cols] = q times its row's and leaf's scale, rounded to dtype: bf16 or f16. cols is a multiple of 16, w and out
 * begin on 16-byte borders. */
typedef struct prefill_widen_args {
    const int8_t *w;    /* [rows][cols] */
    const float *scale; /* [rows][leaves.count] */
    uint16_t *out;
    int32_t cols, dtype;
    prefill_leaves leaves;
} prefill_widen_args;

/* y holds q, k and v of rows [row_first, row_first + n_rows) of the step. */
typedef struct prefill_qkv_args {
    const cuda_step *step;
    const float *y;                        /* n_parts of [n_rows][(H + 2 K) d] */
    const float *q_bias, *k_bias, *v_bias; /* or NULL */
    const float *q_norm, *k_norm;          /* or NULL */
    const float *rope;
    void *q; /* act [M][(H + 2 K) d], of which the first H d are written */
    void *k_cache, *v_cache;
    float eps;
    int32_t dtype, kv_dtype;
    int32_t layer, n_pages, n_heads, n_kv, d_head;
    int32_t row_first, n_rows;
    int32_t n_parts; /* of the sums y, at most 8: nodes of the leaf tree */
    int64_t part_stride;
} prefill_qkv_args;

typedef struct prefill_attn_args {
    const cuda_step *step;
    const void *q; /* as qkv leaves it */
    const void *k_cache, *v_cache;
    void *out; /* act [M][H d] */
    float scale;
    int32_t dtype, kv_dtype;
    int32_t layer, n_pages, n_heads, n_kv, d_head, window;
    int32_t stride; /* prefill_attn_any: floats of a row in shared memory, a multiple of 4 above d_head */
} prefill_attn_args;

/* The attention kernels of Hopper: 128 pairs a tile, keys in blocks, rows of 64 elements side by side ("panels") so that one
 * row of a panel is the 128 bytes that the swizzle of wgmma's operands works on. */
enum {
    PREFILL_FLASH_PAIRS = 128,
    PREFILL_FLASH_THREADS = 384, /* a warpgroup that loads, two that compute */
    PREFILL_FLASH_STAGES = 2,    /* blocks of K, and of V, that are in shared memory or on their way */
    PREFILL_FLASH_BARRIERS = 2 + 4 * PREFILL_FLASH_STAGES
};
#define PREFILL_FLASH_KEYS(d) ((d) > 128 ? 64 : 128)
#define PREFILL_FLASH_PANELS(d) (((d) + 63) / 64)
#define PREFILL_FLASH_SHARED_BYTES(d)                                                                                  \
    (128 * PREFILL_FLASH_PANELS(d) * (PREFILL_FLASH_PAIRS + 2 * PREFILL_FLASH_STAGES * PREFILL_FLASH_KEYS(d)) +        \
     8 * PREFILL_FLASH_BARRIERS)

/* A CUtensorMap, of a matrix of the run dtype with d_head columns, in boxes of a page's 64 rows and 64 columns. */
typedef struct __attribute__((aligned(64))) prefill_map {
    uint64_t word[16];
} prefill_map;

typedef struct prefill_flash_args {
    prefill_map k_map, v_map; /* rows: [layer][page][KV head][64 tokens] */
    const cuda_step *step;
    const void *q; /* as qkv leaves it */
    void *out;     /* act [M][H d] */
    float scale;
    int32_t layer, n_pages, n_heads, n_kv, window;
    int32_t n_tiles; /* of step->tile */
} prefill_flash_args;

/* act = silu(gate) * up of n_rows rows. */
typedef struct prefill_silu_args {
    const float *gate, *up;           /* n_parts of [n_rows][d_ffn] */
    const float *gate_bias, *up_bias; /* or NULL */
    void *act;                        /* [n_rows][d_ffn] */
    int32_t dtype, d_ffn, n_parts;
    int64_t part_stride;
} prefill_silu_args;

typedef struct prefill_faults_args {
    const cuda_step *step;
    const float *logits; /* [n_out][n] */
    int32_t *fault;
    int32_t n, index;
} prefill_faults_args;

#endif
