/*
 * Arguments of the decode kernels, passed by value: what decode.c fills in and kern/decode_*.cu read. Pointers are device
 * addresses. Dtypes are ls_dtype's values (lockstep.h), which kernels see as KERN_*; decode.c asserts that they agree.
 */
#ifndef LS_BACKEND_CUDA_DECODE_ARGS_H
#define LS_BACKEND_CUDA_DECODE_ARGS_H

#include "backend/cuda/kern/step.h"

enum { KERN_F32 = 1, KERN_BF16 = 2, KERN_F16 = 3, KERN_INT8 = 4 };

enum {
    DECODE_LEAVES = 8,          /* = LS_LEAVES = CUDA_NODES */
    DECODE_TILE = 16,           /* rows of W that a warp takes: mma's M */
    DECODE_PAIR_BYTES = 2048,   /* of weights, that a warp takes at a time: 128 of each row of a tile */
    DECODE_LONG_PAIRS = 4,      /* of them, that it asks for at a time in a long stage; else one */
    DECODE_ATTN_HEADS = 4,      /* query heads of one KV head that a block of attention takes */
    DECODE_ATTN_WARPS = 9,      /* of a block, at most */
    DECODE_ATTN_WIDE = 8,       /* ... with heads of more than 128 elements */
    DECODE_ATTN_UNIT = 32,      /* tokens that a warp takes at a time; a page has whole units */
    DECODE_ATTN_TOKENS = 512,   /* of a split, at least */
    DECODE_CHAIN_TOKENS = 1024, /* ... of a chain's */
    DECODE_ATTN_WHOLE = 1024,   /* of a row, at most, that are one split */
    DECODE_CHAIN_UNITS = 2,     /* that a chain has in shared memory or on their way */
    DECODE_CHAIN_TEAM = 3,      /* warps of a chain */
    DECODE_CHAIN_WARPS = 6,     /* of a block of chains, at most */
    DECODE_ATTN_SPLITS = 32,    /* of a row's tokens, at most */
    DECODE_ATTN_BYTES = 8192,   /* of shared memory, besides the warps' */
    DECODE_SAMPLE_THREADS = 256,
    DECODE_SAMPLE_BLOCKS = 64, /* of one row, at most */
    DECODE_LISTED = 256        /* the largest top-k whose candidates are listed: as many as the CPU offers */
};

/* embed: y[m] = table row of token[m] in f32, or an input row, or zeros. A row's faults begin here. */
typedef struct decode_embed_args {
    const cuda_step *step;
    const void *table;  /* [vocab_count][d] */
    const float *scale; /* int8: [vocab_count][8] */
    float *y;           /* [M][d] */
    int32_t *fault;     /* [M] */
    int32_t format, d, vocab_first, vocab_count;
    int32_t takes_input_rows;          /* rank 0 */
    int32_t border[DECODE_LEAVES + 1]; /* leaves of d */
} decode_embed_args;

enum { DECODE_SLIM_THREADS = 672 }; /* of a block of decode_exchange_slim, at most */

/* exchange, and the norm of the op behind it; either may be missing. One block a row. */
typedef struct decode_exchange_args {
    const cuda_step *step;
    const float *node[DECODE_LEAVES]; /* [M][d] each: the nodes of the tree, in order */
    int32_t n_nodes;                  /* 1, 2, 4 or 8; 0: h is as it is */
    int32_t init, d, dtype;           /* dtype of x */
    const float *bias;                /* [d] or NULL */
    float *h;                         /* [M][d] */
    int32_t *fault;                   /* [M] */
    const float *norm;                /* [d]; NULL: no norm */
    void *x;                          /* act [M][d], or [n_out][d] */
    float eps;
    int32_t out_rows; /* x has the output rows alone */
    int32_t op_index; /* of the exchange */
} decode_exchange_args;

typedef struct decode_matrix {
    const void *w;      /* [rows][k] */
    const float *scale; /* int8: [rows][n_leaves] */
    const float *bias;  /* [rows] or NULL */
    int32_t rows;
    int32_t y_first;    /* column of y */
    int32_t first_tile; /* INT32_MAX: there are no such tiles */
} decode_matrix;

enum { DECODE_QKV, DECODE_FFN_IN, DECODE_ROW, DECODE_HEAD };

/* A block takes a share of the rows of all matrices in turn, in tiles of 16 rows (ffn_in: 8 of gate and the same 8 of up), and
 * one node of the leaf tree, a leaf a warp (or several warps, of other rows). blockIdx.y: node; blockIdx.z: rows of x, as many as the kernel takes. */
typedef struct decode_matmul_args {
    const cuda_step *step;
    const void *x; /* act [M][k] */
    void *y;       /* f32 [M][y_stride]; ffn_in: act */
    int32_t *fault;
    decode_matrix matrix[3]; /* q, k, v; gate, up; or one; rows = 0: not there */
    int32_t kind, k, n_leaves;
    int32_t n_tiles;   /* of 16 rows, none of which lies in two matrices */
    int32_t is_pair;   /* ffn_in: a tile is half of matrix[0], half of matrix[1] */
    int32_t ring;      /* stages of weights that a warp has in flight: 4, 5, 6 or 8; long ones: 1, 2 or 3 */
    int32_t x_room;    /* bytes of shared memory for a leaf of all rows of x; 0: x stays where it is */
    int32_t leaf_bits; /* long stages: log2 of the leaves of a block */
    int32_t border[DECODE_LEAVES + 1]; /* first column of each leaf; the last one is k */
    int32_t y_stride;
    int32_t op_index;
    int64_t node_stride; /* row: floats between the nodes' outputs */
    int32_t n_rows;      /* of all matrices; ffn_in: of one */
} decode_matmul_args;

/* attn, with what qkv leaves to it. Blocks share the items (row, KV head and group of its query heads, split) among them. */
typedef struct decode_attn_args {
    const cuda_step *step;
    const float
        *qkv;  /* f32 [M][(H + 2 K) d]: as the projections gave it, or (raw = 0) q finished and k, v in the cache */
    void *att; /* act [M][H d] */
    void *k_cache, *v_cache;               /* this layer's: [n_pages][K][P][d] */
    const float *q_bias, *k_bias, *v_bias; /* [heads][d], or NULL: in qkv already, or there are none */
    const float *q_norm, *k_norm;          /* [d] or NULL */
    const float *rope;                     /* [positions][d/2][2] */
    float *partial;                        /* [item][heads (d + 2)] */
    uint32_t *counter;                     /* [row][group], zero */
    int32_t raw, n_heads, n_kv, d, dtype, window;
    int32_t row_bytes; /* of a row of K or V in shared memory: whole mma tiles of d, and 16 more */
    int32_t
        warp_bytes; /* of shared memory: a unit of K, one of V, o in f32, probabilities; of a chain: all of its own */
    int32_t split_tokens; /* of a split, at least */
    float scale, eps;
} decode_attn_args;

/* Of a chain's shared memory, besides o and units of its warps: q, and the row's own k and v; see kern/decode_attn_chain.cu. */
#define DECODE_CHAIN_BYTES(width) (2 * DECODE_ATTN_HEADS * ((width) + 8) * 2 + 2 * (width)*2 + 320)

typedef struct decode_sample_part {
    double value;
    int32_t id;
    /* Of filtered rows, in addition: */
    float max;                                 /* the best z */
    double sum;                                /* of exp(z - max), unless the row's top-k is listed */
    uint64_t best[DECODE_SAMPLE_THREADS / 32]; /* each warp's best candidate: decode_filter.cuh; 0: none */
} decode_sample_part;

/* sample: blockIdx: (slice, output row). */
typedef struct decode_sample_args {
    const cuda_step *step;
    const float *logits;      /* [n_out][n_vocab] */
    decode_sample_part *part; /* [n_out][gridDim.x] */
    uint32_t *counter;        /* [n_out], zero */
    int32_t *drawn;           /* [n_out] */
    int32_t n_vocab, vocab_first;
} decode_sample_args;

#endif
