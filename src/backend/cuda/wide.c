/* See wide.h. */
#include "backend/cuda/wide.h"

#include <string.h>

#include "backend/cuda/kern/wide_args.h"

_Static_assert((int)WIDE_PARTS == (int)CUDA_NODES, "pieces may be nodes");

static const int widths[WIDE_KERNELS] = {32, 64, 128, 256};
static const char *const names[2][WIDE_KERNELS] = {{"wide_bf16_32", "wide_bf16_64", "wide_bf16_128", "wide_bf16_256"},
                                                   {"wide_f16_32", "wide_f16_64", "wide_f16_128", "wide_f16_256"}};

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

/* Whole tiles where turns of them leave few blocks idle; else as few cut tiles as give every block its share. */
static wide_work cut(int tiles, int across, int k, int blocks) {
    enum { IDLE = 16 }; /* one in so many blocks' turns */
    tiles *= across;
    wide_work w = {.n_tiles = tiles, .n_k = ceil_div(k, WIDE_K), .n_across = across};
    const int turns = tiles / blocks, rest = tiles % blocks;
    w.n_whole = tiles;
    if (rest == 0 || (blocks - rest) * IDLE < (turns + 1) * blocks) {
        w.n_stream = 0;
        return w;
    }
    w.n_whole = turns * blocks;
    if (turns > 0 && rest * (WIDE_PARTS - 1) < blocks) { /* too few tiles for so many blocks */
        w.n_whole -= blocks;
    }
    const int n_cut = tiles - w.n_whole;
    w.n_stream = at_most(at_most(blocks, n_cut * (WIDE_PARTS - 1)), n_cut * w.n_k);
    return w;
}

static int most_pieces(const wide_work *w) {
    int most = 1;
    for (int i = 0; i < w->n_tiles - w->n_whole && w->n_stream > 0; i++) {
        const int n = wide_pieces(w, i);
        most = n > most ? n : most;
    }
    return most;
}

/* Pieces of a tile begin at borders that lie n_stream / n_cut to a tile. */
static int64_t part_floats(const wide_work *w, int n_rows) {
    const int n_cut = w->n_tiles - w->n_whole;
    return w->n_stream == 0 ? 0
                            : (int64_t)at_most(ceil_div(w->n_stream, n_cut) + 1, WIDE_PARTS) *
                                  at_most(n_rows, WIDE_ROWS) * n_cut * WIDE_TILE;
}

static int blocks_of(const cuda_rank *rank) {
    return at_most(rank->facts.sm_count, WIDE_BLOCKS);
}

size_t wide_workspace(const ls_op *op, int n_ops, const ls_bind *bind) {
    int64_t most = 0;
    if (bind->dtype != LS_BF16 && bind->dtype != LS_F16) {
        return 0;
    }
    for (int i = 0; i < n_ops; i++) {
        shape s;
        if (op[i].layer > 1 || !shape_of(&op[i], &s)) { /* layers are alike */
            continue;
        }
        for (int across = 1; across <= ceil_div(bind->m_max, WIDE_ROWS); across++) {
            for (int blocks = 1; blocks <= WIDE_BLOCKS; blocks++) {
                const wide_work w = cut(count_tiles(&s, bind), across, bind->weight[s.weight[0]].cols, blocks);
                const int64_t floats = part_floats(&w, bind->m_max);
                most = floats > most ? floats : most;
            }
        }
    }
    return (size_t)most * sizeof(float);
}

/* ---- Preparation ---- */

ls_status wide_prepare(cuda_rank *rank, CUfunction *fn, ls_error *err) {
    const ls_dtype dtype = rank->bind.dtype;
    rank->wide_fn = fn;
    rank->wide = rank->facts.cc_major == 9 && rank->facts.cc_minor == 0 && rank->overlap &&
                 (dtype == LS_BF16 || dtype == LS_F16);
    for (int i = 0; i < WIDE_KERNELS && rank->wide; i++) {
        TRY(cuda_check(rank,
                       rank->driver->cuFuncSetAttribute(fn[(dtype == LS_F16) * WIDE_KERNELS + i],
                                                        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                                        WIDE_SHARED_BYTES(widths[i])),
                       "shared memory of matmuls", err));
    }
    return LS_OK;
}

static const void *input_of(const ls_bind *bind, const ls_op *op) {
    return bind->buf[op->kind == OP_OUT ? BUF_ATT : op->kind == OP_FFN_OUT ? BUF_ACT : BUF_X];
}

bool wide_serves(const cuda_rank *rank, const ls_op *op) {
    const ls_bind *bind = &rank->bind;
    shape s;
    bool serves = rank->wide && shape_of(op, &s);
    for (int i = 0; serves && i < s.n_weights; i++) {
        const ls_weight *w = &bind->weight[s.weight[i]];
        serves = w->format == bind->dtype && w->rows > 0 && w->cols > 0 && w->cols % 8 == 0 &&
                 ((uintptr_t)w->data | (uintptr_t)input_of(bind, op)) % 16 == 0;
    }
    return serves;
}

/* ---- Work ---- */

/* A power of two; 0: one, once the pieces are added up. */
static int nodes_of(const cuda_rank *rank, const wide_work *w) {
    int nodes = 1;
    if (w->n_across > 1 || rank->bind.group.size > 1) { /* ranks may hold different numbers of columns */
        return 0;
    }
    while (nodes < most_pieces(w)) {
        nodes *= 2;
    }
    return nodes;
}

static wide_work work_of(const cuda_rank *rank, const ls_op *op, int n_rows) {
    shape s;
    (void)shape_of(op, &s);
    return cut(count_tiles(&s, &rank->bind), ceil_div(n_rows, WIDE_ROWS), rank->bind.weight[s.weight[0]].cols,
               blocks_of(rank));
}

int wide_row_nodes(const cuda_rank *rank, const ls_op *op, int n_rows, bool alone) {
    const wide_work w = work_of(rank, op, n_rows);
    const int nodes = nodes_of(rank, &w);
    return alone || nodes == 0 ? 1 : nodes;
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
static void set_output(const cuda_rank *rank, const ls_op *op, int index, bool alone, float *y, wide_out *o) {
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
        o->n_nodes = alone ? 0 : nodes_of(rank, &o->work);
        break;
    }
}

static ls_status finish(cuda_rank *rank, wide_out *o, ls_error *err) {
    const int of_tile = (o->kind == WIDE_FFN_IN ? WIDE_TILE / 2 : WIDE_TILE) / 4;
    const int columns = (o->work.n_tiles - o->work.n_whole) * of_tile;
    return cuda_launch_overlapping(rank, rank->wide_fn[2 * WIDE_KERNELS], "wide_finish",
                                   (unsigned)ceil_div(columns, WIDE_FINISH_THREADS), (unsigned)o->part_rows, 1,
                                   WIDE_FINISH_THREADS, 0, (void *[]){o}, err);
}

ls_status wide_matmul(cuda_rank *rank, const ls_op *op, int index, int n_rows, bool alone, float *y, CUdeviceptr part,
                      ls_error *err) {
    const ls_bind *bind = &rank->bind;
    int i_width = 0;
    while (i_width < WIDE_KERNELS - 1 && widths[i_width] < n_rows) {
        i_width++;
    }
    shape s;
    (void)shape_of(op, &s);
    const int k = bind->weight[s.weight[0]].cols;
    wide_args args = {.out = {.step = (const cuda_step *)(uintptr_t)rank->step,
                              .work = work_of(rank, op, n_rows),
                              .kind = s.kind,
                              .dtype = (int32_t)bind->dtype,
                              .n_rows = n_rows,
                              .part_rows = at_most(n_rows, WIDE_ROWS),
                              .part = (float *)(uintptr_t)part}};
    set_output(rank, op, index, alone, y, &args.out);
    TRY(wide_map(rank, input_of(bind, op), n_rows, k, widths[i_width], &args.x_map, err));
    for (int i = 0, tile = 0, column = 0; i < 3; i++) {
        wide_matrix *matrix = &args.out.matrix[i];
        matrix->first_tile = i == 0 || s.kind == WIDE_QKV ? tile : INT32_MAX;
        if (i < s.n_weights) {
            const ls_weight *w = &bind->weight[s.weight[i]];
            matrix->rows = w->rows;
            matrix->bias = s.bias[i] < 0 ? NULL : bind->weight[s.bias[i]].data;
            matrix->y_first = s.kind == WIDE_QKV ? column : 0;
            tile += ceil_div(w->rows, WIDE_TILE);
            column += w->rows;
            TRY(wide_map(rank, w->data, w->rows, k, WIDE_TILE / 2, &args.w_map[i], err));
        }
    }
    const wide_work *work = &args.out.work;
    const int kernel = (bind->dtype == LS_F16) * WIDE_KERNELS + i_width;
    const int wanted = work->n_whole > work->n_stream ? work->n_whole : work->n_stream;
    TRY(cuda_launch_overlapping(rank, rank->wide_fn[kernel], names[bind->dtype == LS_F16][i_width],
                                (unsigned)at_most(blocks_of(rank), wanted), 1, 1, WIDE_THREADS,
                                (unsigned)WIDE_SHARED_BYTES(widths[i_width]), (void *[]){&args}, err));
    return work->n_stream > 0 && args.out.n_nodes == 0 ? finish(rank, &args.out, err) : LS_OK;
}
