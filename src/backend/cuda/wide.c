/* See wide.h. */
#include "backend/cuda/wide.h"

#include <string.h>

#include "backend/cuda/kern/wide_args.h"

_Static_assert((int)WIDE_PARTS == (int)CUDA_NODES, "pieces may be nodes");

typedef struct wide_kernel {
    const char *bf16, *f16; /* names */
    int rows;               /* of x, at most */
    bool is_long;           /* its ring: one block a multiprocessor */
} wide_kernel;

/* The first one that serves is the one. */
static const wide_kernel kernels[WIDE_KERNELS] = {{"wide_bf16_32_long", "wide_f16_32_long", 32, true},
                                                  {"wide_bf16_32", "wide_f16_32", 32, false},
                                                  {"wide_bf16_64_long", "wide_f16_64_long", 64, true},
                                                  {"wide_bf16_64", "wide_f16_64", 64, false},
                                                  {"wide_bf16_128", "wide_f16_128", 128, false}};

static int ceil_div(int a, int b) {
    return (a + b - 1) / b;
}

static int at_most(int a, int b) {
    return a < b ? a : b;
}

/* ---- Shapes ---- */

typedef struct shape {
    int weight[3], bias[3]; /* indices, -1: none */
    int n_weights, kind;
} shape;

/* False: no matmul. */
static bool shape_of(const ls_op *op, shape *s) {
    switch (op->kind) {
    case OP_QKV:
        *s = (shape){{op->qkv.q, op->qkv.k, op->qkv.v}, {op->qkv.q_bias, op->qkv.k_bias, op->qkv.v_bias}, 3, WIDE_QKV};
        return true;
    case OP_FFN_IN:
        *s = (shape){{op->ffn_in.gate, op->ffn_in.up}, {op->ffn_in.gate_bias, op->ffn_in.up_bias}, 2, WIDE_FFN_IN};
        return true;
    case OP_OUT:
    case OP_FFN_OUT:
        *s = (shape){{op->row.weight}, {-1}, 1, WIDE_ROW};
        return true;
    case OP_HEAD:
        *s = (shape){{op->head.weight}, {-1}, 1, WIDE_HEAD};
        return true;
    default:
        return false;
    }
}

static int count_tiles(const shape *s, const ls_bind *bind) {
    int tiles = 0;
    if (s->kind == WIDE_FFN_IN) {
        return ceil_div(bind->weight[s->weight[0]].rows, WIDE_TILE / 2);
    }
    for (int i = 0; i < s->n_weights; i++) {
        tiles += ceil_div(bind->weight[s->weight[i]].rows, WIDE_TILE);
    }
    return tiles;
}

/* The fewest equal pieces that give so many per cent of the multiprocessors a block: with more, and with fewer, layers take longer
 * (`prefill_bench decode` on an H100). There are then no more blocks than can run at a time. */
static wide_work cut(int tiles, int k, int chip) {
    enum { LEAST_PERCENT = 60 };
    wide_work w = {.n_tiles = tiles, .n_k = ceil_div(k, WIDE_K), .n_pieces = 1};
    while (tiles * w.n_pieces * 100 < LEAST_PERCENT * chip && w.n_pieces < WIDE_PARTS && 2 * w.n_pieces <= w.n_k) {
        w.n_pieces *= 2;
    }
    return w;
}

/* Blocks share the memory alike, so what counts is that few stand idle in the last turn, wherever they run. */
static int count_blocks(const wide_work *w, int chip) {
    const int items = w->n_tiles * w->n_pieces;
    int best = chip;
    for (int blocks = chip; blocks <= WIDE_BLOCKS * chip; blocks++) {
        best = ceil_div(items, blocks) * blocks < ceil_div(items, best) * best ? blocks : best;
    }
    return items <= WIDE_BLOCKS * chip ? items : best;
}

static int chip_of(const cuda_rank *rank) {
    return at_most(rank->facts.sm_count, WIDE_CHIP);
}

size_t wide_workspace(const ls_op *op, int n_ops, const ls_bind *bind) {
    int most = 0;
    if (bind->dtype != LS_BF16 && bind->dtype != LS_F16) {
        return 0;
    }
    for (int i = 0; i < n_ops; i++) {
        shape s;
        if (op[i].layer > 1 || !shape_of(&op[i], &s)) { /* layers are alike */
            continue;
        }
        for (int chip = 1; chip <= WIDE_CHIP; chip++) {
            const wide_work w = cut(count_tiles(&s, bind), bind->weight[s.weight[0]].cols, chip);
            most = w.n_pieces > 1 && w.n_tiles * w.n_pieces > most ? w.n_tiles * w.n_pieces : most;
        }
    }
    return (size_t)most * WIDE_TILE * WIDE_ROWS * sizeof(float);
}

/* ---- Preparation ---- */

ls_status wide_prepare(cuda_rank *rank, CUfunction *fn, ls_error *err) {
    const ls_dtype dtype = rank->bind.dtype;
    rank->wide_fn = fn;
    rank->wide = rank->facts.cc_major == 9 && rank->facts.cc_minor == 0 && rank->overlap &&
                 (dtype == LS_BF16 || dtype == LS_F16);
    for (int i = 0; i < WIDE_KERNELS && rank->wide; i++) {
        const CUfunction kernel = fn[(dtype == LS_F16) * WIDE_KERNELS + i];
        TRY(cuda_check(rank,
                       rank->driver->cuFuncSetAttribute(kernel, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                                        WIDE_SHARED_BYTES(kernels[i].rows, kernels[i].is_long)),
                       "shared memory of matmuls", err));
        TRY(cuda_share_most(rank, kernel, err));
    }
    return LS_OK;
}

static const void *input_of(const ls_bind *bind, const ls_op *op) {
    return bind->buf[op->kind == OP_OUT ? BUF_ATT : op->kind == OP_FFN_OUT ? BUF_ACT : BUF_X];
}

bool wide_serves(const cuda_rank *rank, const ls_op *op, int n_rows) {
    const ls_bind *bind = &rank->bind;
    shape s;
    bool serves = rank->wide && n_rows <= WIDE_ROWS && shape_of(op, &s);
    for (int i = 0; serves && i < s.n_weights; i++) {
        const ls_weight *w = &bind->weight[s.weight[i]];
        serves = w->format == bind->dtype && w->rows > 0 && w->cols > 0 && w->cols % 8 == 0 &&
                 ((uintptr_t)w->data | (uintptr_t)input_of(bind, op)) % 16 == 0;
    }
    return serves;
}

/* ---- Work ---- */

static wide_work work_of(const cuda_rank *rank, const ls_op *op) {
    shape s;
    (void)shape_of(op, &s);
    return cut(count_tiles(&s, &rank->bind), rank->bind.weight[s.weight[0]].cols, chip_of(rank));
}

int wide_row_nodes(const cuda_rank *rank, const ls_op *op, bool alone) {
    /* Ranks may hold different numbers of columns, and cut them differently. */
    return alone || rank->bind.group.size > 1 ? 1 : work_of(rank, op).n_pieces;
}

ls_status wide_map(cuda_rank *rank, const void *data, int rows, int cols, int box_rows, prefill_map *out,
                   ls_error *err) {
    const cuuint64_t size[] = {(cuuint64_t)cols, (cuuint64_t)rows}, row_bytes = (cuuint64_t)cols * 2;
    const cuuint32_t box[] = {WIDE_K, (cuuint32_t)box_rows}, each[] = {1, 1};
    CUtensorMap map;
    TRY(cuda_check(
        rank,
        rank->driver->cuTensorMapEncodeTiled(
            &map, rank->bind.dtype == LS_BF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 : CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2,
            (void *)(uintptr_t)data, size, &row_bytes, box, each, CU_TENSOR_MAP_INTERLEAVE_NONE,
            CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
        "a map of a matrix", err));
    memcpy(out, &map, sizeof map);
    return LS_OK;
}

/* y and what else the op's kind decides. */
static void set_output(const cuda_rank *rank, const ls_op *op, int index, bool alone, float *y, wide_args *o) {
    const ls_bind *bind = &rank->bind;
    switch (op->kind) {
    case OP_QKV:
        o->y = y;
        o->y_stride = (op->qkv.n_heads_loc + 2 * op->qkv.n_kv_loc) * op->qkv.d_head;
        break;
    case OP_FFN_IN:
        o->y = bind->buf[BUF_ACT];
        o->y_stride = op->ffn_in.d_ffn_loc;
        break;
    case OP_HEAD:
        o->y = bind->buf[BUF_LOGITS];
        o->y_stride = op->head.vocab_count;
        o->fault = (int32_t *)bind->fault;
        o->op_index = index;
        break;
    default:
        o->y = (float *)bind->buf[BUF_PART] + (int64_t)op->row.slot * CUDA_NODES * bind->m_max * bind->d_model;
        o->y_stride = bind->d_model;
        o->node_stride = (int64_t)bind->m_max * bind->d_model;
        o->has_nodes = wide_row_nodes(rank, op, alone) > 1;
        break;
    }
}

ls_status wide_matmul(cuda_rank *rank, const ls_op *op, int index, int n_rows, bool alone, float *y, CUdeviceptr part,
                      ls_error *err) {
    const ls_bind *bind = &rank->bind;
    const wide_work work = work_of(rank, op);
    const int chip = chip_of(rank);
    const bool has_room = work.n_tiles * work.n_pieces <= chip;
    int i = 0;
    while (i < WIDE_KERNELS - 1 && (kernels[i].rows < n_rows || (kernels[i].is_long && !has_room))) {
        i++;
    }
    const wide_kernel *kernel = &kernels[i];
    const bool is_f16 = bind->dtype == LS_F16;
    shape s;
    (void)shape_of(op, &s);
    const int k = bind->weight[s.weight[0]].cols;
    wide_args args = {.step = (const cuda_step *)(uintptr_t)rank->step,
                      .work = work,
                      .kind = s.kind,
                      .n_rows = n_rows,
                      .part = (float *)(uintptr_t)part,
                      .counter = (uint32_t *)(uintptr_t)rank->counters};
    set_output(rank, op, index, alone, y, &args);
    TRY(wide_map(rank, input_of(bind, op), n_rows, k, kernel->rows, &args.x_map, err));
    for (int j = 0, tile = 0, column = 0; j < 3; j++) {
        wide_matrix *matrix = &args.matrix[j];
        matrix->first_tile = j == 0 || s.kind == WIDE_QKV ? tile : INT32_MAX;
        if (j < s.n_weights) {
            const ls_weight *w = &bind->weight[s.weight[j]];
            matrix->rows = w->rows;
            matrix->bias = s.bias[j] < 0 ? NULL : bind->weight[s.bias[j]].data;
            matrix->y_first = s.kind == WIDE_QKV ? column : 0;
            tile += ceil_div(w->rows, WIDE_TILE);
            column += w->rows;
            TRY(wide_map(rank, w->data, w->rows, k, WIDE_TILE / 2, &args.w_map[j], err));
        }
    }
    return cuda_launch_overlapping(rank, rank->wide_fn[is_f16 * WIDE_KERNELS + i], is_f16 ? kernel->f16 : kernel->bf16,
                                   (unsigned)count_blocks(&work, chip), 1, 1, WIDE_THREADS,
                                   (unsigned)WIDE_SHARED_BYTES(kernel->rows, kernel->is_long), (void *[]){&args}, err);
}
