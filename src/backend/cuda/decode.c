/*
 * Launches the ops of decode steps. See cuda.h and kern/decode_*.cu.
 *
 * One launch an op. The norm of qkv, ffn_in and head is part of the exchange before them; what follows qkv's matmul (QK
 * norm, RoPE, KV append) is part of attention. BUF_QKV is f32 in between. An op that the program does not lead up to in
 * this way is made whole all the same: its norm is a launch of its own; attention without qkv before it takes q and the
 * cache as they are.
 *
 * Prefill steps of few rows come here too, for all but attention: decode_launch_few.
 *
 * Everything here depends on the shapes, the bucket and the chip; none of it decides bits.
 */
#include <string.h>

#include "backend/cuda/cuda.h"
#include "backend/cuda/kern/decode_args.h"

_Static_assert((int)KERN_F32 == (int)LS_F32 && (int)KERN_BF16 == (int)LS_BF16 && (int)KERN_F16 == (int)LS_F16 &&
                   (int)KERN_INT8 == (int)LS_INT8,
               "kernels know dtypes by these numbers");
_Static_assert((int)DECODE_LEAVES == (int)LS_LEAVES && (int)DECODE_LEAVES == (int)CUDA_NODES, "one leaf tree");
_Static_assert((int)CUDA_TOKEN_DRAWN == (int)LS_TOKEN_DRAWN, "kernels know drawn tokens by this number");

/* ---- Kernels by name ---- */

#define MATMULS(name)                                                                                                  \
    "decode_matmul_" name "_odd", "decode_matmul_" name "_1", "decode_matmul_" name "_8", "decode_matmul_" name "_16"
#define WIDE_MATMULS(name) MATMULS(name), "decode_matmul_" name "_24", "decode_matmul_" name "_32"
#define LONG_MATMULS(name)                                                                                             \
    "decode_matmul_" name "_1_long", "decode_matmul_" name "_8_long", "decode_matmul_" name "_16_long"
#define ATTNS(name) "decode_attn_" name "_64", "decode_attn_" name "_128", "decode_attn_" name "_256"
#define CHAINS(name) "decode_attn_chain_" name "_64", "decode_attn_chain_" name "_128"

/* Matmuls and attention in the order of ls_dtype. */
const char *const decode_kernel_names[] = {
    "decode_embed",
    "decode_exchange",
    "decode_exchange_slim",
    "decode_sample",
    MATMULS("f32"),
    WIDE_MATMULS("bf16"),
    WIDE_MATMULS("f16"),
    MATMULS("int8_f32"),
    WIDE_MATMULS("int8_bf16"),
    WIDE_MATMULS("int8_f16"),
    LONG_MATMULS("bf16"),
    LONG_MATMULS("f16"),
    ATTNS("f32"),
    ATTNS("bf16"),
    ATTNS("f16"),
    CHAINS("bf16"),
    CHAINS("f16"),
};
const int n_decode_kernels = sizeof decode_kernel_names / sizeof *decode_kernel_names;

enum {
    KERNEL_EMBED,
    KERNEL_EXCHANGE,
    KERNEL_SLIM_EXCHANGE,
    KERNEL_SAMPLE,
    KERNEL_MATMUL,
    OF_F32 = 4, /* by width: rows_of */
    OF_WIDE = 6,
    KERNEL_INT8 = KERNEL_MATMUL + OF_F32 + 2 * OF_WIDE,
    KERNEL_LONG = KERNEL_INT8 + OF_F32 + 2 * OF_WIDE, /* bf16, f16 */
    OF_LONG = 3,                                      /* by width, but for the first */
    KERNEL_ATTN = KERNEL_LONG + 2 * OF_LONG,
    OF_ATTN = 3,                              /* heads up to 64, 128, 256 */
    KERNEL_CHAIN = KERNEL_ATTN + 3 * OF_ATTN, /* bf16, f16 */
    OF_CHAIN = 2                              /* heads up to 64, 128 */
};

enum {
    WARP = 32,
    MAX_EXCHANGE_THREADS = 1024,
    PLAIN_SHARED_BYTES = 48 << 10, /* more must be asked for */
    MAX_ATTN_BYTES = 192 << 10,    /* with more, L1 is too small for the loads of the kernels beside: measured */
    BLOCKS_PER_SM = 2,             /* what matmuls' shared memory is cut for, where it lasts and stages are short */
    LONG_LEAF_BYTES = 1024,        /* 16-bit leaves of fewer bytes of a row lose by long stages: measured */
    LONG_SHARED_BYTES = 144 << 10, /* room for two long stages of eight warps */
    LEAST_NODES = 4,               /* of ffn_out whose warps share x: with fewer a block has more of x to wait for */
    LEAST_ROWS = 4,                /* of a block's even share, where the chip holds more blocks */
    MAX_X_ROOM = 5120,             /* bytes of it for a warp's part of x */
    BLOCK_RESERVE_BYTES = 1024,    /* of it that a block has for CUDA itself */
    SAMPLE_COUNTERS = CUDA_SAMPLE_ROWS /* the last of rank->counters: one for each output row, prefill's too */
};

/* Rows of x that a matmul kernel is for, and columns of its tiles; the first takes weights of any alignment. */
static const int rows_of[OF_WIDE] = {16, 1, 8, 16, 24, 32}, columns_of[OF_WIDE] = {16, 8, 8, 16, 24, 32};

static int at_most(int a, int b) {
    return a < b ? a : b;
}

static int ceil_div(int a, int b) {
    return (a + b - 1) / b;
}

static int at_least_one(int n) {
    return n > 0 ? n : 1;
}

static void *device(CUdeviceptr address) {
    return (void *)(uintptr_t)address; // NOLINT(performance-no-int-to-ptr)
}

static const ls_weight *weight(const cuda_rank *rank, int i) {
    return i < 0 ? NULL : &rank->bind.weight[i];
}

static const float *vector(const cuda_rank *rank, int i) {
    return i < 0 ? NULL : rank->bind.weight[i].data;
}

static ls_status launch(cuda_rank *rank, int kernel, unsigned x, unsigned y, unsigned z, unsigned block, size_t shared,
                        void *args, ls_error *err) {
    return cuda_launch_overlapping(rank, rank->decode_fn[kernel], decode_kernel_names[kernel], x, y, z, block,
                                   (unsigned)shared, (void *[]){args}, err);
}

/* Borders of `count` leaves of n from leaf `first` on, counted from the first one's. */
static void set_borders(int32_t *border, int64_t n, int first, int count) {
    for (int i = 0; i <= count; i++) {
        border[i] = (int32_t)(leaf_border(n, first + i) - leaf_border(n, first));
    }
}

/* ---- The residual stream ---- */

static ls_status launch_embed(cuda_rank *rank, const ls_op *op, int m_bucket, ls_error *err) {
    const op_embed *a = &op->embed;
    const ls_bind *bind = &rank->bind;
    const ls_weight *table = weight(rank, a->table);
    decode_embed_args args = {
        .step = device(rank->step),
        .table = table->data,
        .scale = table->scale,
        .y = (float *)bind->buf[BUF_PART] + (int64_t)a->slot * CUDA_NODES * bind->m_max * bind->d_model,
        .fault = (int32_t *)bind->fault,
        .format = table->format,
        .d = bind->d_model,
        .vocab_first = a->vocab_first,
        .vocab_count = a->vocab_count,
        .takes_input_rows = bind->group.rank == 0,
    };
    set_borders(args.border, bind->d_model, 0, LS_LEAVES);
    return launch(rank, KERNEL_EMBED, (unsigned)m_bucket, 1, 1, 256, 0, &args, err);
}

/* An exchange (NULL: none) and the norm of the op behind it (NULL: none). */
static ls_status launch_exchange(cuda_rank *rank, const ls_op *op, int index, int n_nodes, const ls_op *behind,
                                 int m_bucket, ls_error *err) {
    const ls_bind *bind = &rank->bind;
    const int d = bind->d_model;
    decode_exchange_args args = {.step = device(rank->step),
                                 .d = d,
                                 .dtype = bind->dtype,
                                 .h = bind->buf[BUF_H],
                                 .fault = (int32_t *)bind->fault,
                                 .op_index = index,
                                 .x = bind->buf[BUF_X]};
    if (op != NULL) {
        const op_exchange *a = &op->exchange;
        args.n_nodes = bind->group.size * n_nodes;
        for (int i = 0; i < args.n_nodes; i++) {
            const int64_t node = (int64_t)a->slot * CUDA_NODES + i % n_nodes;
            const float *part = bind->group.size > 1 ? bind->peer_part[i / n_nodes] : bind->buf[BUF_PART];
            args.node[i] = part + node * bind->m_max * d;
        }
        args.init = a->init;
        args.bias = vector(rank, a->bias);
    }
    const ls_op_kind kind = behind != NULL ? behind->kind : OP_KINDS;
    if (kind == OP_QKV) {
        args.norm = vector(rank, behind->qkv.norm);
        args.eps = behind->qkv.eps;
    } else if (kind == OP_FFN_IN) {
        args.norm = vector(rank, behind->ffn_in.norm);
        args.eps = behind->ffn_in.eps;
    } else if (kind == OP_HEAD) {
        args.norm = vector(rank, behind->head.norm);
        args.eps = behind->head.eps;
        args.out_rows = 1;
    }
    const int items = d % 4 == 0 ? d / 4 : d;
    const bool slim = m_bucket > CUDA_MAX_DECODE && d % 4 == 0 && items <= MAX_EXCHANGE_THREADS;
    const int turns = slim ? ceil_div(items, DECODE_SLIM_THREADS) : 1;
    const int threads = at_most(ceil_div(ceil_div(items, turns), WARP) * WARP, MAX_EXCHANGE_THREADS);
    return launch(rank, slim ? KERNEL_SLIM_EXCHANGE : KERNEL_EXCHANGE, (unsigned)m_bucket, 1, 1, (unsigned)threads,
                  (size_t)d * sizeof(float), &args, err);
}

/* ---- Matmuls ---- */

static decode_matrix matrix_of(const cuda_rank *rank, int i_weight, int i_bias, int y_first) {
    const ls_weight *w = weight(rank, i_weight);
    return (decode_matrix){w->data, w->scale, vector(rank, i_bias), w->rows, y_first, INT32_MAX};
}

/* Bytes of the longest of some leaves of `rows` rows of x. */
static int64_t leaf_bytes(const int32_t *border, int n_leaves, int element_bytes, int rows) {
    int longest = 0;
    for (int i = 0; i < n_leaves; i++) {
        const int n = border[i + 1] - border[i];
        longest = n > longest ? n : longest;
    }
    return (int64_t)longest * element_bytes * rows;
}

/* The same where that is little enough for each warp to keep its own; else 0. */
static int x_room(const decode_matmul_args *args, int element_bytes, int rows) {
    const int64_t bytes = leaf_bytes(args->border, args->n_leaves, element_bytes, rows);
    return bytes <= MAX_X_ROOM ? (int)bytes : 0;
}

/* Whether long stages do 16-bit weights good. With rows of x that shared memory has no room for they do not: measured. */
static bool has_long_stages(const cuda_rank *rank, const decode_matmul_args *args, int rows) {
    return 2 * (args->k / args->n_leaves) >= LONG_LEAF_BYTES &&
           rank->facts.shared_bytes_per_block >= LONG_SHARED_BYTES && x_room(args, 2, rows) > 0;
}

/* Bytes of shared memory that each of LS_LEAVES warps of a block can have where per_sm blocks fit a multiprocessor. */
static int warp_share(const cuda_rank *rank, int per_sm, int warps) {
    const int sm = rank->facts.shared_bytes_per_block + BLOCK_RESERVE_BYTES;
    return (sm / per_sm - BLOCK_RESERVE_BYTES * LS_LEAVES / warps) / LS_LEAVES;
}

static int sums_of_warp(int columns) {
    return 2 * columns * DECODE_TILE * (int)sizeof(float);
}

/* ffn_out of so many rows that a warp has no room for its leaf of x: the warps of a block share x then. Each of its leaves has
 * several, for as many parts of the block's rows of W, with long stages. How few nodes of the leaf tree that takes; 0: it does
 * not serve. (`out` has its blocks on what multiprocessors attention leaves free, so it must not need all of each: measured.) */
static int nodes_that_share_x(const cuda_rank *rank, const ls_op *op, int n_rows) {
    const op_row *a = &op->row;
    const ls_weight *w = weight(rank, a->weight);
    int32_t border[LS_LEAVES + 1];
    set_borders(border, a->k_total, a->leaf_first, a->leaf_count);
    const int64_t x = leaf_bytes(border, a->leaf_count, 2, n_rows);
    if (op->kind != OP_FFN_OUT || n_rows > CUDA_MAX_DECODE || rank->bind.dtype == LS_F32 || w->format == LS_INT8 ||
        w->cols % 8 != 0 || (uintptr_t)w->data % 16 != 0 || x <= MAX_X_ROOM ||
        2 * (w->cols / a->leaf_count) < LONG_LEAF_BYTES) {
        return 0;
    }
    const int columns = n_rows > 8 ? 16 : 8, stages = 2 * DECODE_LONG_PAIRS * DECODE_PAIR_BYTES;
    for (int nodes = at_most(LEAST_NODES, a->leaf_count); nodes <= a->leaf_count; nodes *= 2) {
        if (a->leaf_count / nodes * x / LS_LEAVES + sums_of_warp(columns) + stages <= warp_share(rank, 1, LS_LEAVES)) {
            return nodes;
        }
    }
    return 0;
}

int decode_row_nodes(const cuda_rank *rank, const ls_op *op, int n_rows) {
    const op_row *a = &op->row;
    int nodes = nodes_that_share_x(rank, op, n_rows);
    if (nodes == 0) { /* as few as give the chip enough blocks */
        const int tiles = ceil_div(weight(rank, a->weight)->rows, DECODE_TILE);
        nodes = 1;
        while (nodes < a->leaf_count && tiles * nodes < rank->facts.sm_count) {
            nodes *= 2;
        }
    }
    return nodes;
}

/* How a block of a matmul uses its shared memory: sums, rings and (x_room > 0) x. The deepest ring with which two blocks of
 * eight warps fit an SM (one, if stages are long); fewer blocks before a ring of less than four pairs. Returns its bytes. */
static int place_in_shared(const cuda_rank *rank, decode_matmul_args *args, bool is_long, int warps, int columns,
                           int leaves) {
    static const int short_rings[] = {8, 6, 5, 4, 0}, long_rings[] = {3, 2, 1, 0};
    const int *rings = is_long ? long_rings : short_rings;
    const int stage = (is_long ? DECODE_LONG_PAIRS : 1) * DECODE_PAIR_BYTES, sums = sums_of_warp(columns);
    for (int per_sm = is_long ? 1 : BLOCKS_PER_SM; per_sm > 0; per_sm--) {
        const int most = warp_share(rank, per_sm, warps);
        for (int i = 0; rings[i] > 0; i++) {
            args->ring = rings[i];
            if (args->ring * stage + sums + args->x_room * leaves / warps <= most) {
                return warps * (args->ring * stage + sums) + leaves * args->x_room;
            }
        }
    }
    args->x_room = 0;
    return warps * (args->ring * stage + sums);
}

/* Every row begins at a multiple of 16 bytes. */
static bool is_aligned(const decode_matmul_args *args, size_t element_bytes) {
    bool aligned = (size_t)args->k * element_bytes % 16 == 0 && (uintptr_t)args->x % 16 == 0;
    for (int i = 0; i < 3; i++) {
        aligned = aligned && (uintptr_t)args->matrix[i].w % 16 == 0;
    }
    return aligned;
}

/* args without step, k and what counts rows; the shape of `like` is that of all its matrices, but for rows. shares_x: see
 * nodes_that_share_x. */
static ls_status launch_matmul(cuda_rank *rank, decode_matmul_args *args, const ls_weight *like, int tiles, int nodes,
                               bool shares_x, int m_bucket, ls_error *err) {
    args->step = device(rank->step);
    args->k = like->cols;
    args->n_tiles = tiles;
    args->is_pair = args->kind == DECODE_FFN_IN;
    for (int i = 0, tile = 0; i < 3; i++) {
        args->n_rows += i == 0 || args->kind == DECODE_QKV ? args->matrix[i].rows : 0;
        args->matrix[i].first_tile = i == 0 || args->kind == DECODE_QKV ? tile : INT32_MAX;
        tile += ceil_div(args->matrix[i].rows, DECODE_TILE);
    }
    const ls_dtype dtype = rank->bind.dtype;
    int kernel = like->format == LS_INT8 ? KERNEL_INT8 : KERNEL_MATMUL, n_widths = OF_F32, width = 0;
    if (dtype != LS_F32) {
        kernel += OF_F32 + (dtype == LS_F16 ? OF_WIDE : 0);
        n_widths = OF_WIDE;
    }
    if (is_aligned(args, ls_dtype_bytes(like->format))) { /* the narrowest that takes all rows, or the widest */
        width = 1;
        while (width + 1 < n_widths && rows_of[width] < m_bucket) {
            width++;
        }
    }
    const int columns = columns_of[width], leaves = args->n_leaves / nodes, rows = at_most(m_bucket, columns);
    const bool is_f32 = dtype == LS_F32;
    const bool is_long = like->format != LS_INT8 &&
                         (is_f32 || shares_x || (width > 0 && columns == 8 && has_long_stages(rank, args, rows)));
    kernel = is_long && !is_f32 ? KERNEL_LONG + (dtype == LS_F16 ? OF_LONG : 0) + width - 1 : kernel + width;
    const int warps = shares_x ? LS_LEAVES : leaves, groups = warps / leaves;
    int shared = warps * columns * DECODE_TILE * (int)sizeof(float), blocks = tiles;
    while (1 << args->leaf_bits < leaves) {
        args->leaf_bits++;
    }
    if (columns <= CUDA_MAX_DECODE) { /* all at a time, with as many rows each, or tiles, but for the last */
        const int element = (int)ls_dtype_bytes(dtype);
        args->x_room = width == 0 ? 0
                       : shares_x ? (int)leaf_bytes(args->border, args->n_leaves, element, rows)
                                  : x_room(args, element, rows);
        shared = place_in_shared(rank, args, is_long, warps, columns, leaves);
        const int most = at_least_one((rank->facts.shared_bytes_per_block + BLOCK_RESERVE_BYTES) /
                                      (shared + BLOCK_RESERVE_BYTES) * rank->facts.sm_count / nodes);
        blocks = is_long ? at_most(most, ceil_div(args->n_rows, LEAST_ROWS * groups))
                         : ceil_div(tiles, at_least_one(ceil_div(tiles, most)));
    }
    return launch(rank, kernel, (unsigned)at_least_one(blocks), (unsigned)nodes, (unsigned)ceil_div(m_bucket, columns),
                  (unsigned)(warps * WARP), (size_t)shared, args, err);
}

static ls_status launch_qkv(cuda_rank *rank, const ls_op *op, void *y, int m_bucket, ls_error *err) {
    const op_qkv *a = &op->qkv;
    const ls_bind *bind = &rank->bind;
    const int q = a->n_heads_loc * a->d_head, kv = a->n_kv_loc * a->d_head;
    decode_matmul_args args = {.x = bind->buf[BUF_X],
                               .y = y,
                               .kind = DECODE_QKV,
                               .n_leaves = LS_LEAVES,
                               .y_stride = q + 2 * kv,
                               .matrix = {matrix_of(rank, a->q, a->q_bias, 0), matrix_of(rank, a->k, a->k_bias, q),
                                          matrix_of(rank, a->v, a->v_bias, q + kv)}};
    set_borders(args.border, bind->d_model, 0, LS_LEAVES);
    const int tiles = ceil_div(q, DECODE_TILE) + 2 * ceil_div(kv, DECODE_TILE);
    return launch_matmul(rank, &args, weight(rank, a->q), tiles, 1, false, m_bucket, err);
}

static ls_status launch_ffn_in(cuda_rank *rank, const ls_op *op, int m_bucket, ls_error *err) {
    const op_ffn_in *a = &op->ffn_in;
    const ls_bind *bind = &rank->bind;
    decode_matmul_args args = {
        .x = bind->buf[BUF_X],
        .y = bind->buf[BUF_ACT],
        .kind = DECODE_FFN_IN,
        .n_leaves = LS_LEAVES,
        .y_stride = a->d_ffn_loc,
        .matrix = {matrix_of(rank, a->gate, a->gate_bias, 0), matrix_of(rank, a->up, a->up_bias, 0)}};
    set_borders(args.border, bind->d_model, 0, LS_LEAVES);
    return launch_matmul(rank, &args, weight(rank, a->gate), ceil_div(a->d_ffn_loc, DECODE_TILE / 2), 1, false,
                         m_bucket, err);
}

static ls_status launch_row(cuda_rank *rank, const ls_op *op, int n_nodes, int m_bucket, ls_error *err) {
    const op_row *a = &op->row;
    const ls_bind *bind = &rank->bind;
    const int64_t node = (int64_t)bind->m_max * bind->d_model;
    decode_matmul_args args = {.x = bind->buf[op->kind == OP_OUT ? BUF_ATT : BUF_ACT],
                               .y = (float *)bind->buf[BUF_PART] + a->slot * CUDA_NODES * node,
                               .kind = DECODE_ROW,
                               .n_leaves = a->leaf_count,
                               .y_stride = bind->d_model,
                               .node_stride = node,
                               .matrix = {matrix_of(rank, a->weight, -1, 0)}};
    set_borders(args.border, a->k_total, a->leaf_first, a->leaf_count);
    const ls_weight *w = weight(rank, a->weight);
    const bool shares_x = n_nodes == nodes_that_share_x(rank, op, m_bucket);
    return launch_matmul(rank, &args, w, ceil_div(w->rows, DECODE_TILE), n_nodes, shares_x, m_bucket, err);
}

static ls_status launch_head(cuda_rank *rank, const ls_op *op, int index, int m_bucket, ls_error *err) {
    const op_head *a = &op->head;
    const ls_bind *bind = &rank->bind;
    decode_matmul_args args = {.x = bind->buf[BUF_X],
                               .y = bind->buf[BUF_LOGITS],
                               .fault = (int32_t *)bind->fault,
                               .kind = DECODE_HEAD,
                               .n_leaves = LS_LEAVES,
                               .y_stride = a->vocab_count,
                               .op_index = index,
                               .matrix = {matrix_of(rank, a->weight, -1, 0)}};
    set_borders(args.border, bind->d_model, 0, LS_LEAVES);
    return launch_matmul(rank, &args, weight(rank, a->weight), ceil_div(a->vocab_count, DECODE_TILE), 1, false,
                         m_bucket, err);
}

/* ---- Attention ---- */

/* Blocks of query heads of all KV heads, and floats of one split's partial result. */
static int attn_blocks(const op_attn *a) {
    return a->n_kv_loc * ceil_div(a->n_heads_loc / a->n_kv_loc, DECODE_ATTN_HEADS);
}

static size_t partial_bytes(const op_attn *a) {
    return (size_t)at_most(a->n_heads_loc / a->n_kv_loc, DECODE_ATTN_HEADS) * (size_t)(a->d_head + 2) * sizeof(float);
}

/* A row of n tokens has at most n / DECODE_ATTN_TOKENS + 1 splits, and all rows' tokens lie in the pages there are. */
size_t decode_workspace(const ls_op *attn, int m_max, int max_len, int n_pages) {
    const op_attn *a = &attn->attn;
    const size_t rows = (size_t)at_most(m_max, CUDA_MAX_WIDE),
                 splits = (size_t)at_most(max_len / DECODE_ATTN_TOKENS + 1, DECODE_ATTN_SPLITS),
                 of_pages = rows + (size_t)n_pages * LS_PAGE_TOKENS / DECODE_ATTN_TOKENS;
    const size_t items = (size_t)attn_blocks(a) * (rows * splits < of_pages ? rows * splits : of_pages);
    const size_t attention = items * partial_bytes(a);
    const size_t sample = rows * DECODE_SAMPLE_BLOCKS * sizeof(decode_sample_part);
    return attention > sample ? attention : sample;
}

int decode_attn_warps(const cuda_rank *rank, int d_head, int *row_bytes, int *warp_bytes) {
    const int element = (int)ls_dtype_bytes(rank->bind.kv_dtype);
    const int room = at_most(rank->facts.shared_bytes_per_block, MAX_ATTN_BYTES) - DECODE_ATTN_BYTES;
    const int most = d_head > 128 ? DECODE_ATTN_WIDE : DECODE_ATTN_WARPS;
    *row_bytes = ceil_div(d_head, 16) * 16 * element + 16;
    *warp_bytes =
        2 * DECODE_ATTN_UNIT * *row_bytes + DECODE_ATTN_HEADS * (d_head + DECODE_ATTN_UNIT) * (int)sizeof(float);
    return at_most(room / *warp_bytes, rank->attn_warps > 0 ? at_most(rank->attn_warps, most) : most);
}

/* Chains of a block; 0: they do not serve. They pay where there are more rows than a chip has blocks to give each KV head one:
 * all items at work at once, none of them shared. */
static int chains_of_block(const cuda_rank *rank, int d_head, int m_bucket, int *row_bytes, int *chain_bytes) {
    enum { FEWEST = 2 }; /* that keep an SM's share of memory busy */
    const bool wanted = rank->attn_chains > 0 || (rank->attn_chains == 0 && m_bucket > CUDA_MAX_DECODE);
    if (!wanted || rank->bind.kv_dtype == LS_F32 || d_head > 128) {
        return 0;
    }
    const int room = rank->facts.shared_bytes_per_block, width = d_head > 64 ? 128 : 64;
    *row_bytes = ceil_div(d_head, 16) * 16 * (int)ls_dtype_bytes(rank->bind.kv_dtype) + 16;
    *chain_bytes =
        (int)DECODE_CHAIN_BYTES(width) + DECODE_CHAIN_TEAM * (DECODE_ATTN_HEADS * width * (int)sizeof(float) +
                                                              DECODE_CHAIN_UNITS * 2 * DECODE_ATTN_UNIT * *row_bytes);
    const int chains = at_most(room / *chain_bytes, DECODE_CHAIN_WARPS / DECODE_CHAIN_TEAM);
    return chains >= FEWEST ? chains : 0;
}

/* before: the op before it, which is qkv or NULL. with_bias: its matmul left the bias to this. */
static ls_status launch_attn(cuda_rank *rank, const ls_op *op, const ls_op *before, bool with_bias, int m_bucket,
                             ls_error *err) {
    const op_attn *a = &op->attn;
    const ls_bind *bind = &rank->bind;
    const int blocks = attn_blocks(a);
    const int64_t layer_elements = (int64_t)bind->n_pages * a->n_kv_loc * LS_PAGE_TOKENS * a->d_head;
    const size_t layer_bytes = (size_t)(op->layer * layer_elements) * ls_dtype_bytes(bind->kv_dtype);
    if (blocks * m_bucket > CUDA_COUNTERS - SAMPLE_COUNTERS || a->d_head > LS_MAX_HEAD) {
        return error_set(err, LS_EUNSUPPORTED, "attn on the GPU: %d heads of %d elements are too many", a->n_heads_loc,
                         a->d_head);
    }
    decode_attn_args args = {.step = device(rank->step),
                             .qkv = bind->buf[BUF_QKV],
                             .att = bind->buf[BUF_ATT],
                             .k_cache = (uint8_t *)bind->k_cache + layer_bytes,
                             .v_cache = (uint8_t *)bind->v_cache + layer_bytes,
                             .rope = bind->rope,
                             .partial = device(rank->workspace),
                             .counter = device(rank->counters),
                             .raw = before != NULL,
                             .n_heads = a->n_heads_loc,
                             .n_kv = a->n_kv_loc,
                             .d = a->d_head,
                             .dtype = bind->dtype,
                             .window = a->window_tokens,
                             .scale = a->scale};
    if (before != NULL) {
        args.q_norm = vector(rank, before->qkv.q_norm);
        args.k_norm = vector(rank, before->qkv.k_norm);
        args.eps = before->qkv.eps;
        args.q_bias = with_bias ? vector(rank, before->qkv.q_bias) : NULL;
        args.k_bias = with_bias ? vector(rank, before->qkv.k_bias) : NULL;
        args.v_bias = with_bias ? vector(rank, before->qkv.v_bias) : NULL;
    }
    const int chains = chains_of_block(rank, a->d_head, m_bucket, &args.row_bytes, &args.warp_bytes);
    if (chains > 0) {
        const int chain = KERNEL_CHAIN + ((int)bind->kv_dtype - LS_BF16) * OF_CHAIN + (a->d_head > 64);
        args.split_tokens = DECODE_CHAIN_TOKENS;
        return launch(rank, chain, (unsigned)rank->facts.sm_count, 1, 1, (unsigned)(chains * DECODE_CHAIN_TEAM * WARP),
                      (size_t)(chains * args.warp_bytes), &args, err);
    }
    const int warps = decode_attn_warps(rank, a->d_head, &args.row_bytes, &args.warp_bytes);
    args.split_tokens = rank->attn_tokens > 0 ? rank->attn_tokens : DECODE_ATTN_TOKENS;
    /* As many blocks as the chip holds at a time, or as there may be items. */
    const int bytes = DECODE_ATTN_BYTES + warps * args.warp_bytes;
    const int grid = at_most(m_bucket * blocks * DECODE_ATTN_SPLITS,
                             rank->facts.sm_count * (rank->facts.shared_bytes_per_block / bytes));
    const int kernel = KERNEL_ATTN + ((int)bind->kv_dtype - LS_F32) * OF_ATTN + (a->d_head > 64) + (a->d_head > 128);
    return launch(rank, kernel, (unsigned)grid, 1, 1, (unsigned)(warps * WARP), (size_t)bytes, &args, err);
}

/* ---- Sampling ---- */

int decode_sample_slices(const ls_op *op) {
    return at_least_one(at_most(ceil_div(op->sample.vocab_count, 4 * DECODE_SAMPLE_THREADS), DECODE_SAMPLE_BLOCKS));
}

size_t decode_sample_workspace(const ls_op *op, int n_out) {
    return (size_t)n_out * (size_t)decode_sample_slices(op) * sizeof(decode_sample_part);
}

static ls_status launch_sample(cuda_rank *rank, const ls_op *op, int m_bucket, ls_error *err) {
    const op_sample *a = &op->sample;
    decode_sample_args args = {.step = device(rank->step),
                               .logits = rank->bind.buf[BUF_LOGITS],
                               .part = device(rank->workspace),
                               .counter = (uint32_t *)device(rank->counters) + CUDA_COUNTERS - SAMPLE_COUNTERS,
                               .drawn = device(rank->drawn),
                               .n_vocab = a->vocab_count,
                               .vocab_first = a->vocab_first};
    return launch(rank, KERNEL_SAMPLE, (unsigned)decode_sample_slices(op), (unsigned)m_bucket, 1, DECODE_SAMPLE_THREADS,
                  0, &args, err);
}

/* ---- All ops ---- */

static ls_status allow_shared(cuda_rank *rank, int kernel, size_t bytes, ls_error *err) {
    return cuda_check(rank,
                      rank->driver->cuFuncSetAttribute(rank->decode_fn[kernel],
                                                       CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, (int)bytes),
                      decode_kernel_names[kernel], err);
}

ls_status decode_prepare(cuda_rank *rank, ls_error *err) {
    const size_t most = (size_t)rank->facts.shared_bytes_per_block;
    const size_t bytes = (size_t)rank->bind.d_model * sizeof(float);
    TRY(cuda_share_most(rank, rank->decode_fn[KERNEL_SLIM_EXCHANGE], err));
    for (int i = KERNEL_MATMUL; i < n_decode_kernels; i++) {
        TRY(allow_shared(rank, i, most, err));
    }
    if (bytes <= PLAIN_SHARED_BYTES) {
        return LS_OK;
    }
    if (bytes + 1024 > most) {
        return error_set(err, LS_EUNSUPPORTED, "a model width of %d: the GPU's %d bytes of shared memory hold no row",
                         rank->bind.d_model, rank->facts.shared_bytes_per_block);
    }
    TRY(allow_shared(rank, KERNEL_SLIM_EXCHANGE, bytes, err));
    return allow_shared(rank, KERNEL_EXCHANGE, bytes, err);
}

static bool begins_with_norm(const ls_op *op) {
    return op->kind == OP_QKV || op->kind == OP_FFN_IN || op->kind == OP_HEAD;
}

static bool is_row(const ls_op *op) {
    return op->kind == OP_OUT || op->kind == OP_FFN_OUT;
}

ls_status decode_launch_rows(cuda_rank *rank, const ls_op *op, int n_ops, int first, const decode_how *how,
                             ls_error *err) {
    const ls_op *this = &op[first], *before = first > 0 && !how->alone ? &op[first - 1] : NULL;
    const ls_op *behind = first + 1 < n_ops && !how->alone ? &op[first + 1] : NULL;
    if (begins_with_norm(this) && (before == NULL || before->kind != OP_EXCHANGE)) {
        TRY(launch_exchange(rank, NULL, first, 0, this, how->n_rows, err));
    }
    switch (this->kind) {
    case OP_EMBED:
        return launch_embed(rank, this, how->n_rows, err);
    case OP_EXCHANGE:
        return launch_exchange(rank, this, first, how->n_nodes, behind, how->n_rows, err);
    case OP_QKV:
        return launch_qkv(rank, this, how->qkv, how->n_rows, err);
    case OP_OUT:
    case OP_FFN_OUT:
        return launch_row(rank, this, how->n_nodes, how->n_rows, err);
    case OP_FFN_IN:
        return launch_ffn_in(rank, this, how->n_rows, err);
    case OP_HEAD:
        return launch_head(rank, this, first, how->n_out, err);
    default:
        return error_set(err, LS_EINTERNAL, "decode: op %d is of no known kind", first);
    }
}

ls_status decode_launch_norm(cuda_rank *rank, const ls_op *op, int first, int n_rows, ls_error *err) {
    return launch_exchange(rank, NULL, first, 0, &op[first], n_rows, err);
}

ls_status decode_launch_attn(cuda_rank *rank, const ls_op *op, int first, bool with_bias, int n_rows, ls_error *err) {
    const bool raw = first > 0 && op[first - 1].kind == OP_QKV;
    return launch_attn(rank, &op[first], raw ? &op[first - 1] : NULL, with_bias, n_rows, err);
}

ls_status decode_launch(cuda_rank *rank, const ls_op *op, int n_ops, int first, int m_bucket, int *n_taken,
                        ls_error *err) {
    const ls_op *this = &op[first], *before = first > 0 ? &op[first - 1] : NULL;
    const ls_op *row = is_row(this) ? this : before != NULL && is_row(before) ? before : NULL;
    const decode_how how = {.n_rows = m_bucket,
                            .n_out = m_bucket,
                            .n_nodes = row != NULL ? decode_row_nodes(rank, row, m_bucket) : 1,
                            .qkv = rank->bind.buf[BUF_QKV]};
    *n_taken = 1;
    switch (this->kind) {
    case OP_ATTN:
        return launch_attn(rank, this, before != NULL && before->kind == OP_QKV ? before : NULL, false, m_bucket, err);
    case OP_SAMPLE:
        return launch_sample(rank, this, m_bucket, err);
    default:
        return decode_launch_rows(rank, op, n_ops, first, &how, err);
    }
}
