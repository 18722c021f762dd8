/*
 * The op table and the arguments of the persistent decode kernel: what persist.c fills in and kern/persist.cu reads. Pointers are
 * device addresses.
 */
#ifndef LS_BACKEND_CUDA_PERSIST_ARGS_H
#define LS_BACKEND_CUDA_PERSIST_ARGS_H

#include "backend/cuda/kern/decode_args.h"

enum {
    PERSIST_WARPS = 8, /* that compute */
    PERSIST_LINES = 3, /* of the table in shared memory */
    PERSIST_THREADS = 32 * PERSIST_WARPS,
    PERSIST_ALL_THREADS = PERSIST_THREADS + 64, /* one warp more asks for weights, one looks at the clock */
    PERSIST_SLOTS = 64,                         /* chunks in the ring at a time, at most */
    PERSIST_HEIGHTS = 5,                        /* rows of boxes: 16, 8, 4, 2, 1 */
    PERSIST_ELEMENT = 8,                        /* bytes of an element of boxes, which have at most 256 a row */
    PERSIST_PANEL = 128,                        /* bytes of a row of K or V in a box */
    PERSIST_MAX_RANKS = 8,
    PERSIST_NORM_WARPS = 32 /* of the norm's sum, at most: decode_exchange's */
};

/* A line of the table. out and ffn_out have the exchange behind them in theirs, embed too; head has sample. */
enum {
    PERSIST_EMBED,
    PERSIST_NORM,
    PERSIST_QKV,
    PERSIST_ATTN,
    PERSIST_ROW,
    PERSIST_FFN_IN,
    PERSIST_HEAD,
    PERSIST_KINDS
};

/* A CUtensorMap of rows of 8-byte elements. A matmul has, for boxes of 16, 8, ... rows, for each matrix, one as wide as
 * a group of leaves or its pieces, and one for the last pieces where there are others; attn has one of K and one of V, in boxes of 32 rows and a panel,
 * with the swizzle of 128 bytes. */
typedef struct __attribute__((aligned(64))) persist_map {
    uint64_t word[16];
} persist_map;

typedef struct persist_matrix {
    const void *w;      /* [rows][k] */
    const float *scale; /* int8: [rows][n_leaves] */
    const float *bias;  /* [rows] or NULL */
} persist_matrix;

typedef struct persist_op {
    int32_t kind;
    int32_t index, layer; /* of the program's op, for faults and for who is stuck; row: index is the exchange's */
    int32_t rows; /* that blocks share: of all matrices, one behind the other; ffn_in: columns; embed: of h; attn: 0 */
    int32_t unit; /* a block's rows begin at a multiple of this */
    int32_t first_row[3]; /* of each matrix, in `rows`; INT32_MAX: there is none */
    persist_matrix matrix[3];
    int32_t k, n_leaves;
    int32_t n_parts; /* row: blocks that share a row's leaves, each a node; norm: that share a row's elements; else 1 */
    int32_t group;   /* leaves of a chunk, a power of two; attn: 2, K and V of a unit, or 1, either */
    int32_t n_pieces;                  /* of a group, of one leaf if there are several */
    int32_t piece_bytes, last_bytes;   /* of a row in shared memory, of a piece and of a group's last one */
    int32_t row_bytes;                 /* of a matrix in memory */
    int32_t map, n_maps, n_matrices;   /* its maps, behind those of the op before */
    int32_t x_pitch;                   /* bytes from row to row of x */
    int32_t border[DECODE_LEAVES + 1]; /* first column of each leaf; the last one is k */
    uint64_t *in, *out;                /* words: what the op reads and what it writes */
    int32_t in_stride, out_stride;     /* elements of a row of these */
    int32_t in_op;                     /* table index of the op that writes `in` */
    int32_t norm_threads;              /* that decode_exchange has: they decide the order of the norm's sum */
    const float *norm;                 /* [k]; NULL: x is `in` as it is */
    int32_t of_outputs;                /* norm: of output rows alone; head: `in` has output rows alone */
    float eps;
    int32_t slot;      /* row: of the nodes that ranks exchange */
    const float *bias; /* row: of the exchange */
    const float *q_norm, *k_norm;
    void *k_cache, *v_cache;
    float scale;
    int32_t n_heads, n_kv, d_head, window, max_splits;
    int32_t vocab_first;
    int32_t reserved[1]; /* to a multiple of 16 bytes */
} persist_op;

/* A wait that took too long. */
typedef struct persist_stuck {
    uint64_t
        ends_ns; /* what every watch looks at: when waiting ends, by the clock of the GPU that says so (others' need not agree); 0: not */
    uint64_t
        missing; /* (rank + 1) << 32 | index of the op that needs what it did not send; 0: none. By any who waited for it */
    int32_t claimed, op, layer, block; /* by the thread of this rank that noticed first */
} persist_stuck;

/* What other ranks store to, args.node[rank], in words: nodes of the leaf tree [2 slots][DECODE_LEAVES][m_max][d], each rank's best of
 * each output row [PERSIST_MAX_RANKS][CUDA_MAX_DECODE][4] (value, value, id, nothing), a persist_stuck. */
#define PERSIST_BESTS_AT(m_max, d) ((int64_t)2 * DECODE_LEAVES * (m_max) * (d))
#define PERSIST_STUCK_AT(m_max, d) (PERSIST_BESTS_AT(m_max, d) + PERSIST_MAX_RANKS * CUDA_MAX_DECODE * 4)
#define PERSIST_ROOM_WORDS(m_max, d) (PERSIST_STUCK_AT(m_max, d) + (int64_t)(sizeof(persist_stuck) / sizeof(uint64_t)))

/* What a warp waited for when there was no more waiting. */
enum {
    PERSIST_WAIT_NONE,
    PERSIST_WAIT_CHUNK,  /* a chunk's landing */
    PERSIST_WAIT_WINDOW, /* the producer: the landing of one, before more is asked for */
    PERSIST_WAIT_ROOM,   /* ... a slot's being given back */
    PERSIST_WAIT_SUMS,   /* the other warps' sums of a tile */
    PERSIST_WAIT_INPUT,  /* words of the op's input */
    PERSIST_WAIT_SPLITS, /* ... of attention's splits */
    PERSIST_WAIT_NODES,
    PERSIST_WAIT_OFFERS,
    PERSIST_WAIT_BESTS, /* ... of the other ranks */
    PERSIST_WAITS
};

typedef struct persist_wait {
    int32_t what, op, layer;
    uint32_t chunk; /* number, where it is for one; of nodes and bests: the rank that did not send, and 1 */
} persist_wait;

/* Measuring: what is left out. Numbers are wrong then. */
enum {
    PERSIST_STREAMS_ONLY = 1, /* waiting for activations */
    PERSIST_NO_PRODUCTS = 2,
    PERSIST_NO_OUTPUTS = 4, /* of matmuls */
    PERSIST_NO_WEIGHTS = 8, /* copying them; ... */
    PERSIST_NO_KV = 16
};

/* Measuring, in ns: when an op begins in a block (waits for x), computes and is done; how long warp 0 waited for weights. */
typedef struct persist_stamp {
    uint64_t begin, have_x, end, starved;
} persist_stamp;

typedef struct persist_args {
    const cuda_step *step;
    const persist_op *op; /* [n_ops] */
    const persist_map *map;
    decode_embed_args embed;
    const float *rope;
    float *logits; /* [n_out][n_vocab], of rows that the host draws for */
    int32_t *drawn, *fault;
    uint64_t *node
        [PERSIST_MAX_RANKS]; /* every rank's: nodes of the leaf tree; with several ranks more behind them, see above */
    uint64_t *partial;    /* of attention's splits, [row][group][max_splits][4 (d + 2)]: max and sum of each head, o */
    uint64_t *offer;      /* [blocks][16 rows][4]: value, value, id, fault */
    char *scratch;        /* [blocks][scratch_bytes]: x of ops for which shared memory is too small */
    persist_stuck *stuck; /* in the GPU's memory, since all who wait look at it; with several ranks behind node[rank] */
    persist_stuck *told;  /* the same once more, where the host wants it; or NULL */
    persist_wait *wait;   /* [blocks][PERSIST_WARPS + 1] */
    uint32_t *launches;   /* so far: epochs follow from it */
    persist_stamp *stamp; /* [n_ops][blocks], or NULL */
    int64_t scratch_bytes;
    int64_t timeout_ns;
    int32_t n_ops, d, n_vocab, rank, n_ranks, m_max;
    int32_t own_rows; /* of h that a block has, at most */
    int32_t n_maps;
    int32_t n_slots, slot_bytes; /* of the ring; chunks of the matmuls and of attention, whole ones */
    int32_t window_bytes;        /* of chunks on their way, at most, but for one that is longer */
    int32_t at_barriers, at_lines, at_sums, at_h, at_squares, at_fault, at_watch, at_kept,
        at_x;        /* in shared memory; the ring is at 0 */
    int32_t x_bytes; /* of shared memory for x; what needs more is in scratch */
    int32_t attn_warp_bytes, attn_warps;
    int32_t measure; /* PERSIST_STREAMS_ONLY, ... */
} persist_args;

/* The ranks of one GPU, as one launch: blockIdx.y has member[blockIdx.y]. */
typedef struct persist_shared_args {
    persist_args member[PERSIST_MAX_RANKS];
} persist_shared_args;

#endif
