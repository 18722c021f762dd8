/* See gemm.h. */
#include "backend/cuda/gemm.h"

#include "backend/cuda/kern/gemm_args.h"
#include "backend/cuda/wide.h"

typedef enum gemm_kind { QKV, SILU, ROWS } gemm_kind;

static const struct {
    gemm_kind kind;
    int columns; /* of y, a tile's */
    const char *name[2];
} kernels[GEMM_KERNELS] = {
    {QKV, 256, {"gemm_bf16_qkv_256", "gemm_f16_qkv_256"}},    {SILU, 256, {"gemm_bf16_silu_256", "gemm_f16_silu_256"}},
    {SILU, 240, {"gemm_bf16_silu_240", "gemm_f16_silu_240"}}, {SILU, 160, {"gemm_bf16_silu_160", "gemm_f16_silu_160"}},
    {ROWS, 256, {"gemm_bf16_rows_256", "gemm_f16_rows_256"}}, {ROWS, 160, {"gemm_bf16_rows_160", "gemm_f16_rows_160"}},
    {ROWS, 96, {"gemm_bf16_rows_96", "gemm_f16_rows_96"}}};

static unsigned shared_bytes(int i_kernel) {
    return (unsigned)GEMM_SHARED_BYTES(kernels[i_kernel].columns, kernels[i_kernel].kind != ROWS);
}

static int ceil_div(int a, int b) {
    return (a + b - 1) / b;
}

/* ---- Shapes ---- */

typedef struct shape {
    int weight[3], bias[3]; /* indices, -1: none */
    int n_weights;
    gemm_kind kind;
} shape;

/* False: no matmul. */
static bool shape_of(const ls_op *op, bool sums, shape *s) {
    switch (op->kind) {
    case OP_QKV:
        *s = (shape){
            {op->qkv.q, op->qkv.k, op->qkv.v}, {op->qkv.q_bias, op->qkv.k_bias, op->qkv.v_bias}, 3, sums ? ROWS : QKV};
        return true;
    case OP_FFN_IN:
        *s = (shape){{op->ffn_in.gate, op->ffn_in.up}, {op->ffn_in.gate_bias, op->ffn_in.up_bias}, 2, SILU};
        return true;
    case OP_OUT:
    case OP_FFN_OUT:
        *s = (shape){{op->row.weight}, {-1}, 1, ROWS};
        return true;
    case OP_HEAD:
        *s = (shape){{op->head.weight}, {-1}, 1, ROWS};
        return true;
    default:
        return false;
    }
}

static int columns_of(const ls_bind *bind, const shape *s) {
    int columns = 0;
    for (int i = 0; i < s->n_weights; i++) {
        columns += bind->weight[s->weight[i]].rows;
    }
    return columns;
}

/* Tiles across the columns. */
static int count_across(const ls_bind *bind, const shape *s, int columns) {
    int halves = 0;
    for (int i = 0; i < s->n_weights; i++) { /* gate's and up's are the same columns */
        halves += ceil_div(bind->weight[s->weight[i]].rows, columns / 2);
    }
    return ceil_div(halves, 2);
}

static int count_down(int n_rows) {
    return ceil_div(n_rows, GEMM_CLUSTER * GEMM_ROWS);
}

/* ---- Choice: a kernel, and into how many nodes of the leaf tree k is cut ---- */

typedef struct choice {
    int i_kernel, nodes;
} choice;

/* How many nodes out and ffn_out may leave. Leaves end where blocks of k do, on all ranks alike. */
static int most_nodes(const ls_bind *bind, const ls_op *op) {
    const bool is_row = op->kind == OP_OUT || op->kind == OP_FFN_OUT;
    const bool is_even = is_row && op->row.k_total % (LS_LEAVES * GEMM_K) == 0;
    return is_even ? CUDA_NODES / bind->group.size : 1;
}

/* Time, where a column of a tile is 1 a block of k: tensor cores and W's share of the traffic from L2 go by the columns, x's
 * share is the same for all tiles; tiles begin and end, nodes are written and read. Reckoned from 7 TB/s of L2 and 1.6 GHz;
 * `prefill_bench rows` and `step` have what comes of it. */
static int64_t cost_of(const cuda_rank *rank, const shape *s, int n_rows, choice c) {
    enum { FOR_X = 192, AROUND = 6, ELEMENTS_OF_NODES = 1024 };
    const ls_bind *bind = &rank->bind;
    const int columns = kernels[c.i_kernel].columns, k = bind->weight[s->weight[0]].cols;
    const int64_t tiles = (int64_t)count_across(bind, s, columns) * count_down(n_rows) * c.nodes;
    const int clusters = rank->facts.sm_count / GEMM_CLUSTER;
    const int64_t turns = (tiles + clusters - 1) / clusters;
    return turns * (ceil_div(k, GEMM_K * c.nodes) + AROUND) * (columns + FOR_X) +
           (int64_t)(c.nodes - 1) * n_rows * columns_of(bind, s) / ELEMENTS_OF_NODES;
}

/* The cheapest; a bench passes some over. */
static choice choose(const cuda_rank *rank, const ls_op *op, const shape *s, int n_rows, bool alone) {
    enum { MOST = GEMM_KERNELS * CUDA_NODES };
    const int most = alone ? 1 : most_nodes(&rank->bind, op);
    choice all[MOST];
    int64_t cost[MOST];
    int n = 0;
    for (int i = 0; i < GEMM_KERNELS; i++) {
        for (int nodes = 1; nodes <= most && kernels[i].kind == s->kind; nodes *= 2, n++) {
            const choice c = {i, nodes};
            const int64_t of_c = cost_of(rank, s, n_rows, c);
            int at = n;
            for (; at > 0 && cost[at - 1] > of_c; at--) {
                all[at] = all[at - 1];
                cost[at] = cost[at - 1];
            }
            all[at] = c;
            cost[at] = of_c;
        }
    }
    return all[rank->gemm_passed_over < n ? rank->gemm_passed_over : n - 1];
}

int gemm_row_nodes(const cuda_rank *rank, const ls_op *op, int n_rows, bool alone) {
    shape s;
    (void)shape_of(op, true, &s);
    return choose(rank, op, &s, n_rows, alone).nodes;
}

/* ---- Preparation ---- */

ls_status gemm_prepare(cuda_rank *rank, CUfunction *fn, ls_error *err) {
    const ls_dtype dtype = rank->bind.dtype;
    rank->gemm_fn = fn;
    rank->gemm = rank->facts.cc_major == 9 && rank->facts.cc_minor == 0 && rank->overlap &&
                 rank->facts.sm_count >= GEMM_CLUSTER && (dtype == LS_BF16 || dtype == LS_F16);
    for (int i = 0; i < GEMM_KERNELS && rank->gemm; i++) {
        TRY(cuda_check(rank,
                       rank->driver->cuFuncSetAttribute(fn[(dtype == LS_F16) * GEMM_KERNELS + i],
                                                        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                                        (int)shared_bytes(i)),
                       "shared memory of matmuls", err));
    }
    return LS_OK;
}

static const void *input_of(const ls_bind *bind, const ls_op *op) {
    return bind->buf[op->kind == OP_OUT ? BUF_ATT : op->kind == OP_FFN_OUT ? BUF_ACT : BUF_X];
}

static const float *vector_of(const ls_bind *bind, int i_weight) {
    return i_weight < 0 ? NULL : bind->weight[i_weight].data;
}

static bool on_border(const void *p) {
    return (uintptr_t)p % 16 == 0;
}

bool gemm_serves(const cuda_rank *rank, const ls_op *op) {
    const ls_bind *bind = &rank->bind;
    shape s;
    bool serves =
        rank->gemm && shape_of(op, true, &s) && on_border(input_of(bind, op)) && on_border(bind->buf[BUF_ACT]);
    for (int i = 0; serves && i < s.n_weights; i++) {
        const ls_weight *w = &bind->weight[s.weight[i]];
        serves = w->format == bind->dtype && w->rows > 0 && w->cols > 0 && w->cols % 8 == 0 && on_border(w->data);
    }
    return serves;
}

bool gemm_finishes(const cuda_rank *rank, const op_qkv *a) {
    const ls_bind *bind = &rank->bind;
    const int vector[] = {a->q_bias, a->k_bias, a->v_bias, a->q_norm, a->k_norm};
    bool finishes = (a->d_head == 64 || a->d_head == 128) && bind->kv_dtype == bind->dtype && on_border(bind->rope) &&
                    on_border(bind->buf[BUF_QKV]) && on_border(bind->k_cache) && on_border(bind->v_cache);
    for (size_t i = 0; i < sizeof vector / sizeof *vector; i++) {
        finishes = finishes && on_border(vector_of(bind, vector[i]));
    }
    return finishes;
}

/* ---- Work ---- */

/* y and what else the op's kind decides. */
static void set_output(const cuda_rank *rank, const ls_op *op, float *sums, gemm_args *args) {
    const ls_bind *bind = &rank->bind;
    const op_qkv *a = &op->qkv;
    switch (op->kind) {
    case OP_QKV:
        args->y = sums;
        args->y_stride = (a->n_heads_loc + 2 * a->n_kv_loc) * a->d_head;
        args->layer = op->layer;
        args->n_pages = bind->n_pages;
        args->n_heads = a->n_heads_loc;
        args->n_kv = a->n_kv_loc;
        args->d_head = a->d_head;
        args->eps = a->eps;
        args->q_norm = vector_of(bind, a->q_norm);
        args->k_norm = vector_of(bind, a->k_norm);
        args->rope = bind->rope;
        args->q = bind->buf[BUF_QKV];
        args->k_cache = bind->k_cache;
        args->v_cache = bind->v_cache;
        break;
    case OP_FFN_IN:
        args->y = bind->buf[BUF_ACT];
        args->y_stride = op->ffn_in.d_ffn_loc;
        break;
    case OP_HEAD:
        args->y = bind->buf[BUF_LOGITS];
        args->y_stride = op->head.vocab_count;
        break;
    default:
        args->node_stride = (int64_t)bind->m_max * bind->d_model;
        args->y = (float *)bind->buf[BUF_PART] + op->row.slot * CUDA_NODES * args->node_stride;
        args->y_stride = bind->d_model;
        break;
    }
}

static ls_status set_matrices(cuda_rank *rank, const shape *s, int half, gemm_args *args, ls_error *err) {
    const ls_bind *bind = &rank->bind;
    for (int i = 0, n_halves = 0, column = 0; i < 3; i++) {
        gemm_matrix *matrix = &args->matrix[i];
        matrix->first_half = INT32_MAX;
        if (i < s->n_weights) {
            const ls_weight *w = &bind->weight[s->weight[i]];
            *matrix = (gemm_matrix){vector_of(bind, s->bias[i]), w->rows, column, n_halves};
            n_halves += ceil_div(w->rows, half);
            column += w->rows;
            TRY(wide_map(rank, w->data, w->rows, w->cols, half, &args->w_map[i], err));
        }
    }
    return LS_OK;
}

ls_status gemm_matmul(cuda_rank *rank, const ls_op *op, int n_rows, bool alone, float *sums, ls_error *err) {
    const ls_bind *bind = &rank->bind;
    shape s;
    (void)shape_of(op, sums != NULL, &s);
    const choice c = choose(rank, op, &s, n_rows, alone);
    const int columns = kernels[c.i_kernel].columns, k = bind->weight[s.weight[0]].cols;
    gemm_args args = {.n_rows = n_rows,
                      .n_k = ceil_div(k, GEMM_K * c.nodes),
                      .n_across = count_across(bind, &s, columns),
                      .n_down = count_down(n_rows),
                      .n_nodes = c.nodes,
                      .step = (const cuda_step *)(uintptr_t)rank->step};
    args.n_tiles = args.n_across * args.n_down * args.n_nodes;
    set_output(rank, op, sums, &args);
    TRY(wide_map(rank, input_of(bind, op), n_rows, k, GEMM_ROWS, &args.x_map, err));
    TRY(set_matrices(rank, &s, columns / 2, &args, err));
    const int clusters = rank->facts.sm_count / GEMM_CLUSTER, i_dtype = bind->dtype == LS_F16;
    return cuda_launch_overlapping(rank, rank->gemm_fn[i_dtype * GEMM_KERNELS + c.i_kernel],
                                   kernels[c.i_kernel].name[i_dtype],
                                   (unsigned)(GEMM_CLUSTER * (args.n_tiles < clusters ? args.n_tiles : clusters)), 1, 1,
                                   GEMM_THREADS, shared_bytes(c.i_kernel), (void *[]){&args}, err);
}
