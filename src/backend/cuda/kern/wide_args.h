/*
 * Matmuls of 17 rows and more on Hopper: what wide.c fills in and kern/wide.cu reads, and how the work is cut, which both count.
 *
 * A tile is 128 rows of W (ffn_in: 64 of gate and the same 64 of up) and up to 256 of x by all of k, k in blocks of 64. The first n_whole tiles
 * are a block's own, in turns. The rest is one line of k blocks, tile after tile, which n_stream blocks cut into equal
 * stretches: so all of them read the same number of bytes. A tile is cut into at most WIDE_PARTS pieces. Where it is cut
 * depends on the shape and the chip alone, not on the number of rows.
 */
#ifndef LS_BACKEND_CUDA_WIDE_ARGS_H
#define LS_BACKEND_CUDA_WIDE_ARGS_H

#include "backend/cuda/kern/prefill_args.h"

enum {
    WIDE_TILE = 128,
    WIDE_K = 64,        /* the 128 bytes that the swizzle of wgmma's operands works on */
    WIDE_THREADS = 288, /* two warpgroups that compute, a warp that loads */
    WIDE_PARTS = 8,     /* = CUDA_NODES */
    WIDE_ROWS = 256,    /* of x in a tile, at most */
    WIDE_BLOCKS = 132,  /* at most: what scratch is counted for */
    WIDE_FINISH_THREADS = 256
};
/* For kernels of up to `n` rows of x: blocks of k that are in shared memory or on their way, of W and of x. */
#define WIDE_STAGES(n) ((n) <= 32 ? 10 : (n) <= 64 ? 8 : (n) <= 128 ? 6 : 4)
#define WIDE_STAGE_BYTES(n) ((WIDE_TILE + (n)) * WIDE_K * 2)
#define WIDE_SHARED_BYTES(n) (WIDE_STAGES(n) * (WIDE_STAGE_BYTES(n) + 16))

typedef struct wide_work {
    int32_t n_tiles, n_whole, n_k, n_stream;
    int32_t n_across; /* tiles that have the same rows of W: they follow one another */
} wide_work;

typedef struct wide_matrix {
    const float *bias; /* [rows] or NULL */
    int32_t rows;
    int32_t y_first;    /* column of y */
    int32_t first_tile; /* INT32_MAX: there are no such tiles */
} wide_matrix;

enum { WIDE_QKV, WIDE_FFN_IN, WIDE_ROW, WIDE_HEAD };

/* What becomes of sums. */
typedef struct wide_out {
    const cuda_step *step;
    wide_work work;
    wide_matrix matrix[3]; /* q, k, v; gate, up; or one */
    int32_t kind, dtype;
    int32_t n_rows;    /* of x */
    int32_t part_rows; /* min(n_rows, the kernel's rows) */
    int32_t op_index;
    void *y; /* f32 [n_rows][y_stride]; ffn_in: act */
    int32_t y_stride;
    int32_t n_nodes;     /* row: pieces lie in so many nodes of y, zeros where there are fewer; 0: in `part` */
    int64_t node_stride; /* floats */
    float *part;         /* [piece][part_rows][128 columns of each tile that is cut] */
    int32_t *fault;      /* head: of the step's rows */
} wide_out;

typedef struct wide_args {
    prefill_map x_map;    /* [n_rows][k] in boxes of the kernel's rows and 64 columns */
    prefill_map w_map[3]; /* [rows][k] in boxes of 64 rows and 64 columns */
    wide_out out;
} wide_args;

#ifdef __CUDACC__
#define WIDE_BOTH static __device__ inline
#else
#define WIDE_BOTH static inline
#endif

WIDE_BOTH int wide_units(const wide_work *w) {
    return (w->n_tiles - w->n_whole) * w->n_k;
}
/* Where block `block` of n_stream begins. */
WIDE_BOTH int wide_border(const wide_work *w, int block) {
    return (int)((int64_t)wide_units(w) * block / w->n_stream);
}
/* The block that has a k block of the line. */
WIDE_BOTH int wide_owner(const wide_work *w, int unit) {
    int block = (int)((int64_t)unit * w->n_stream / wide_units(w));
    while (wide_border(w, block + 1) <= unit) {
        block++;
    }
    return block;
}
/* Pieces of tile n_whole + i. */
WIDE_BOTH int wide_pieces(const wide_work *w, int i) {
    return wide_owner(w, (i + 1) * w->n_k - 1) - wide_owner(w, i * w->n_k) + 1;
}

#endif
