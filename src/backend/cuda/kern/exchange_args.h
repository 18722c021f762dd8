/*
 * The exchange between ranks on GPUs: receive buffers, words, and the arguments of kern/exchange.cu. Whatever kernel takes
 * part in an exchange speaks this protocol.
 *
 * Every rank has a box: memory that all ranks of the group may store to (its own GPU's, mapped by its peers; or, where there
 * is no peer access, pinned memory of the host). In it
 *
 *     words   u64 [2 slots][EXCHANGE_NODES][EXCHANGE_ROWS][d]   a node of the leaf tree: f32 in the low half, epoch in the
 *                                                               high half of each word
 *     offers  u64 [2 slots][EXCHANGE_RANKS][n_out_max][4]       a rank's best: halves of a double, id, each with its epoch
 *     met     u32 [EXCHANGE_RANKS]                              how often a rank has met the others
 *     abort   u32                                               not 0: an end to all waiting
 *
 * Words are stored plainly and read again and again until their epoch is the one that is waited for: readiness lies in the
 * data, no fence orders anything, and halves of wider loads and stores may come apart. Each row has an epoch of its own, in
 * its rank's memory (`epochs`): the row's exchange that is under way is epochs[row] + 1, its slot the lowest bit of that, and
 * the kernel that has ended it stores it there; so a captured graph may be replayed. A rank is never more than one exchange
 * of a row ahead of another: it has the other's words of exchange e before it sends those of e + 1, and the other had
 * read those of e - 1 by then. Memory begins as zeros; the first epoch is 1, and that epochs wrap does no harm.
 *
 * A row of d words where d is a multiple of 4: of each four elements the first two lie in its first half, the others in its
 * second, so that a warp's stores of two words each are one piece of memory; the link takes those several times faster.
 *
 * R ranks send EXCHANGE_NODES / R nodes at most each, rank r's as nodes [r n, (r + 1) n).
 *
 * Steps of more than EXCHANGE_ROWS rows go another way, in which rows have owners: rank r has rows [r n, (r + 1) n) with
 * n = ceil(rows / R), and of the residual stream nothing but them. Every rank sends its sums of a row to the row's owner (exchange_push,
 * to the owner's inbox), all meet, the owner adds them up, norms them, and stores the row of x with every rank (exchange_take);
 * all meet again. The first meeting says that the sums are there and that nobody reads x any more, the second that x is there
 * and that nobody reads an inbox any more. An inbox is the part of BUF_PART that no rank of two and more has nodes in.
 */
#ifndef LS_BACKEND_CUDA_EXCHANGE_ARGS_H
#define LS_BACKEND_CUDA_EXCHANGE_ARGS_H

#include "backend/cuda/kern/decode_args.h"

enum {
    EXCHANGE_RANKS = 8,
    EXCHANGE_NODES = 8,
    EXCHANGE_ROWS = CUDA_MAX_DECODE,     /* of a step that goes by words */
    EXCHANGE_INBOX = EXCHANGE_NODES / 2, /* BUF_PART's first node that is of an inbox */
    EXCHANGE_OFFER_WORDS = 4,
    EXCHANGE_OFFER_THREADS = 256,
    EXCHANGE_OFFER_BLOCKS = 8 /* of a rank, at most: all of a GPU's ranks are there at once */
};

/* Bytes from a box's address, and of all of it. */
typedef struct exchange_layout {
    int64_t words, offers, met, abort, bytes;
    int32_t d, n_out_max;
} exchange_layout;

static inline exchange_layout exchange_layout_of(int d, int n_out_max) {
    exchange_layout layout = {.d = d, .n_out_max = n_out_max};
    layout.offers = (int64_t)2 * EXCHANGE_NODES * EXCHANGE_ROWS * d * (int64_t)sizeof(uint64_t);
    layout.met =
        layout.offers + (int64_t)2 * EXCHANGE_RANKS * n_out_max * EXCHANGE_OFFER_WORDS * (int64_t)sizeof(uint64_t);
    layout.abort = layout.met + EXCHANGE_RANKS * (int64_t)sizeof(uint32_t);
    layout.bytes = layout.abort + 4 * (int64_t)sizeof(uint32_t);
    return layout;
}

/* u32 of `epochs`: rows, then output rows, then how often the rank has met the others. */
static inline int64_t exchange_epochs(int n_out_max) {
    return (int64_t)EXCHANGE_ROWS + n_out_max + 1;
}

/* What a rank that waited in vain stores in its word of pinned memory, in one piece: kind << 56 | the rank that did not come
 * << 48 | op index. 0: nothing. */
enum { EXCHANGE_STUCK_ROWS = 1, EXCHANGE_STUCK_MEET = 2, EXCHANGE_STUCK_OFFERS = 3 };
enum { EXCHANGE_STUCK_KIND = 56, EXCHANGE_STUCK_FROM = 48 };

/* What all kernels of a rank know. */
typedef struct exchange_self {
    const cuda_step *step;
    uint32_t *epochs;
    uint64_t *stuck; /* in pinned memory */
    int32_t rank, op_index;
} exchange_self;

typedef struct exchange_group_args {
    char *box[EXCHANGE_RANKS];
    exchange_layout layout;
    int32_t n_ranks;
    uint64_t patience_ns; /* how long to wait */
} exchange_group_args;

/* A rank's share of exchange_rows. */
typedef struct exchange_member {
    exchange_self self;
    const float *part; /* [n_nodes][.][d] this rank's nodes */
    const float *bias; /* [d] or NULL */
    float *h;          /* [M][d] */
    const float *norm; /* [d]; NULL: no norm */
    void *x;           /* act [M][d], or [n_out][d] */
    int32_t *fault;    /* [M] */
} exchange_member;

/* Exchange of the first rows, EXCHANGE_ROWS at most, and the norm of the op behind it: decode_exchange for several ranks.
 * blockIdx: (row, member). Shared memory: d floats, rounded up to 4, and 32. */
typedef struct exchange_rows_args {
    exchange_group_args group;
    exchange_member member[EXCHANGE_RANKS]; /* the ranks of this GPU */
    int64_t node_stride;                    /* floats from a part's node to the next one */
    int32_t n_nodes;                        /* of each rank */
    int32_t init, d, dtype;                 /* dtype of x */
    int32_t out_rows;                       /* x has the output rows alone */
    float eps;
} exchange_rows_args;

/* The same for steps of more rows: what a rank of this GPU has, and where it sends. Both kernels, one after the other. */
typedef struct exchange_slice {
    exchange_self self;
    const float *part; /* [n_nodes][.][d] this rank's nodes */
    const void
        *inbox; /* its own, [n_ranks][owned rows][d]: what others sent; f32, or bf16 where that is the run dtype */
    const float *bias; /* [d] or NULL */
    float *h;          /* [M][d]: the owned rows */
    const float *norm; /* [d]; NULL: no norm */
    int32_t *fault;    /* [M] */
} exchange_slice;

/* exchange_push: blockIdx (row, member). exchange_take: (owned row, member); shared memory as exchange_rows. */
typedef struct exchange_slice_args {
    exchange_slice member[EXCHANGE_RANKS]; /* the ranks of this GPU */
    void *inbox[EXCHANGE_RANKS];           /* all ranks' */
    void *x[EXCHANGE_RANKS];               /* all ranks': act [M][d], or [n_out][d] */
    int64_t node_stride;
    int32_t n_ranks, n_nodes;
    int32_t init, d, dtype;
    int32_t out_rows;
    float eps;
} exchange_slice_args;

/* Returns when all ranks have come as far, and all they wrote before can be read. blockIdx.y: member. */
typedef struct exchange_meet_args {
    exchange_group_args group;
    exchange_self member[EXCHANGE_RANKS];
} exchange_meet_args;

/* decode_sample's offers become the drawn tokens: the best of all ranks' vocabularies. A warp takes every n-th row.
 * blockIdx: (., member). */
typedef struct exchange_offers_member {
    exchange_self self;
    const decode_sample_part *part; /* [n_out][n_slices] */
    int32_t *drawn;                 /* [n_out] */
    int32_t n_slices, vocab_first;
} exchange_offers_member;

typedef struct exchange_offers_args {
    exchange_group_args group;
    exchange_offers_member member[EXCHANGE_RANKS];
} exchange_offers_args;

/* Where a library (NCCL) moves the data, it takes three kernels besides exchange_take of a group of one rank: exchange_sum adds up
 * a rank's nodes, in its first one (exchange_slice_args, as exchange_push); exchange_offer leaves the best offer of each row,
 * and exchange_draw the token of all that were gathered. blockIdx: row. */
typedef struct exchange_offered {
    double value;
    int32_t id, unused;
} exchange_offered;

typedef struct exchange_draw_args {
    const cuda_step *step;
    const decode_sample_part *part; /* [n_out][n_slices] */
    exchange_offered *mine;         /* [n_out] */
    const exchange_offered *all;    /* [n_ranks][n_out] */
    int32_t *drawn;                 /* [n_out] */
    int32_t n_slices, vocab_first, n_ranks, n_out;
} exchange_draw_args;

#endif
