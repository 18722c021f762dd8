/*
 * From a program to the op table of the persistent decode kernel. See persist.h and kern/persist.cu.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "backend/cuda/persist.h"

enum {
    ALIGN_BYTES = 256,
    ROW_BYTES = 64, /* of a row, that a warp multiplies at a time: a piece is whole ones */
    WATCH_BYTES = 32 + 8 * CUDA_MAX_DECODE + 16 * (PERSIST_WARPS + 1), /* persist_watch */
    LEAST_SLOTS = 2,
    LEAST_RING = 64 << 10,
    MAX_NORM_THREADS = 1024,
    MAX_NORM_PARTS = 16,
    FUSED_ROWS = 2, /* steps of more rows have norms apart, and parts */
    WARP = 32,
    BARRIER_BYTES = PERSIST_SLOTS * 16 + 16, /* two barriers each, and two for sums */
    LINE_BYTES = PERSIST_LINES * sizeof(persist_op),
    MAX_PIECE = 256 * PERSIST_ELEMENT, /* a box is no wider */
    TIMEOUT_S = 10
};

/* By dtype, columns, and whether ranks share a launch. */
const char *const persist_kernel_names[] = {
    "persist_f32_8",       "persist_shared_f32_8",       "persist_f32_16",       "persist_shared_f32_16",
    "persist_bf16_8",      "persist_shared_bf16_8",      "persist_bf16_16",      "persist_shared_bf16_16",
    "persist_f16_8",       "persist_shared_f16_8",       "persist_f16_16",       "persist_shared_f16_16",
    "persist_int8_bf16_8", "persist_shared_int8_bf16_8", "persist_int8_bf16_16", "persist_shared_int8_bf16_16"};
const int n_persist_kernels = sizeof persist_kernel_names / sizeof *persist_kernel_names;

/* What is being built. */
typedef struct builder {
    persist_plan *plan;
    const cuda_rank *rank;
    const persist_options *how;
    ls_dtype format;  /* of matrices */
    CUdeviceptr next; /* of the room */
    int n_ops;
    int chunk_bytes;
    bool norm_apart;
    int parts; /* of out's and ffn_out's leaves */
    uint64_t *qkv, *att, *act, *x, *h[2];
    int last_h; /* table index of the op that wrote h last; its buffer: last_h_slot */
    int last_h_slot;
} builder;

static int ceil_div(int a, int b) {
    return (a + b - 1) / b;
}

static int align_to(int at, int to) {
    return ceil_div(at, to) * to;
}

static void *take(builder *b, size_t bytes) {
    void *at = (void *)(uintptr_t)b->next; // NOLINT(performance-no-int-to-ptr)
    b->next += (bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
    return at;
}

static uint64_t *take_words(builder *b, int64_t n) {
    return take(b, (size_t)n * sizeof(uint64_t));
}

static const ls_weight *weight(const builder *b, int i) {
    return i < 0 ? NULL : &b->rank->bind.weight[i];
}

static const float *vector(const builder *b, int i) {
    return i < 0 ? NULL : weight(b, i)->data;
}

/* 64 modulo 128, so that warps read it without conflicts. */
static int pitch_of(int bytes) {
    return (bytes + 63) / 128 * 128 + 64;
}

static ls_status refuse(ls_error *err, const char *why) {
    return error_set(err, LS_EUNSUPPORTED, "the persistent decode kernel does not run this program: %s", why);
}

/* ---- Lines ---- */

static persist_op *add_line(builder *b, int kind, int index, int layer) {
    persist_op *line = &b->plan->op[b->n_ops++];
    *line = (persist_op){.kind = kind,
                         .index = index,
                         .layer = layer,
                         .unit = 1,
                         .n_leaves = LS_LEAVES,
                         .n_parts = 1,
                         .map = b->plan->args.n_maps};
    for (int i = 0; i < 3; i++) {
        line->first_row[i] = INT32_MAX;
    }
    return line;
}

static ls_status add_matrix(builder *b, persist_op *line, int which, int i_weight, int i_bias, int first_row,
                            ls_error *err) {
    const ls_weight *w = weight(b, i_weight);
    if (w->rows < 1 || w->cols < 1) {
        return refuse(err, "a matrix is too small to give each rank a part of it");
    }
    if (w->format != b->format || (uintptr_t)w->data % 16 != 0 || w->layout != LAYOUT_ROW_MAJOR ||
        (size_t)w->cols * ls_dtype_bytes(w->format) % 16 != 0 || w->cols % 8 != 0) {
        return refuse(err, "a matrix is of another dtype than the others, or its rows are no multiples of 16 bytes");
    }
    line->matrix[which] = (persist_matrix){w->data, w->scale, vector(b, i_bias)};
    line->first_row[which] = first_row;
    line->n_matrices = which + 1;
    line->k = w->cols;
    line->row_bytes = w->cols * (int)ls_dtype_bytes(w->format);
    return LS_OK;
}

/* Widths of boxes: of a leaf's last pieces, and of the others where there are any. */
static int families_of(const persist_op *line) {
    return line->n_pieces > 1 ? 2 : 1;
}

static void add_maps(const builder *b, persist_op *line, int n) {
    line->n_maps = n;
    b->plan->args.n_maps += n;
}

/* Bytes of a row that the widest `group` neighbouring leaves have. */
static int widest_group(const builder *b, const persist_op *line, int group) {
    int widest = 0;
    for (int i = 0; i + group <= line->n_leaves; i += group) {
        const int n = line->border[i + group] - line->border[i];
        widest = n > widest ? n : widest;
    }
    return widest * (int)ls_dtype_bytes(b->format);
}

/* Chunks as long as may be: several leaves, as many as the rows of a box hold, or pieces of one. */
static void set_chunks(const builder *b, persist_op *line) {
    const int per_row = b->chunk_bytes / DECODE_TILE / ROW_BYTES * ROW_BYTES;
    const int most = per_row < ROW_BYTES ? ROW_BYTES : per_row < MAX_PIECE ? per_row : MAX_PIECE;
    const int of_part = line->n_leaves / line->n_parts;
    line->group = 1;
    while (of_part % (2 * line->group) == 0 && align_to(widest_group(b, line, 2 * line->group), ROW_BYTES) <= most) {
        line->group *= 2;
    }
    const int longest = widest_group(b, line, line->group);
    line->n_pieces = longest > most ? ceil_div(longest, most) : 1;
    line->piece_bytes = align_to(ceil_div(longest, line->n_pieces), ROW_BYTES);
    line->last_bytes = align_to(longest - (line->n_pieces - 1) * line->piece_bytes, ROW_BYTES);
}

/* Leaves, and how they are cut into chunks. */
static void set_leaves(const builder *b, persist_op *line, int64_t k_total, int first, int count, int parts) {
    for (int i = 0; i <= count; i++) {
        line->border[i] = (int32_t)(leaf_border(k_total, first + i) - leaf_border(k_total, first));
    }
    line->n_leaves = count;
    line->n_parts = parts;
    set_chunks(b, line);
    add_maps(b, line, PERSIST_HEIGHTS * line->n_matrices * families_of(line));
    int widest = 0; /* part */
    for (int i = 0; i < parts; i++) {
        const int n = line->border[(i + 1) * count / parts] - line->border[i * count / parts];
        widest = n > widest ? n : widest;
    }
    line->x_pitch = pitch_of(widest * (int)ls_dtype_bytes(b->rank->bind.dtype));
}

/* In a slot, of K or of V. */
static int bytes_of_unit(const builder *b, int d_head) {
    return DECODE_ATTN_UNIT * align_to(d_head * (int)ls_dtype_bytes(b->rank->bind.kv_dtype), PERSIST_PANEL);
}

/* h as it was written last. */
static void take_h(const builder *b, persist_op *line, int i_norm, float eps) {
    const int d = b->rank->bind.d_model, threads = ceil_div(d / 4, WARP) * WARP;
    line->norm = vector(b, i_norm);
    line->eps = eps;
    line->k = d;
    line->norm_threads = threads < MAX_NORM_THREADS ? threads : MAX_NORM_THREADS; /* as decode.c's exchange */
    line->in = b->h[b->last_h_slot];
    line->in_stride = d;
    line->in_op = b->last_h;
}

/* The norm of the op behind it, as an op of its own. */
static void add_norm(builder *b, int i_norm, float eps, int index, int layer, bool of_outputs) {
    const int parts = b->how->blocks / b->how->rows;
    persist_op *line = add_line(b, PERSIST_NORM, index, layer);
    take_h(b, line, i_norm, eps);
    line->n_parts = parts < 1 ? 1 : parts > MAX_NORM_PARTS ? MAX_NORM_PARTS : parts;
    line->of_outputs = of_outputs;
    line->out = b->x;
    line->out_stride = line->k;
}

/* The op behind add_norm takes what that made; else it makes the norm itself. */
static void take_x(const builder *b, persist_op *line, int i_norm, float eps) {
    if (b->norm_apart) {
        line->in = b->x;
        line->in_stride = b->rank->bind.d_model;
        line->in_op = b->n_ops - 2;
    } else {
        take_h(b, line, i_norm, eps);
    }
}

static ls_status add_qkv(builder *b, const ls_op *op, int index, ls_error *err) {
    const op_qkv *a = &op->qkv;
    const int q = a->n_heads_loc * a->d_head, kv = a->n_kv_loc * a->d_head;
    if (b->norm_apart) {
        add_norm(b, a->norm, a->eps, index, op->layer, false);
    }
    persist_op *line = add_line(b, PERSIST_QKV, index, op->layer);
    TRY(add_matrix(b, line, 0, a->q, a->q_bias, 0, err));
    TRY(add_matrix(b, line, 1, a->k, a->k_bias, q, err));
    TRY(add_matrix(b, line, 2, a->v, a->v_bias, q + kv, err));
    set_leaves(b, line, b->rank->bind.d_model, 0, LS_LEAVES, 1);
    take_x(b, line, a->norm, a->eps);
    line->rows = q + 2 * kv;
    line->unit = line->piece_bytes % 128 != 0 || line->last_bytes % 128 != 0 ? 2 : 1; /* of K and V begin anywhere */
    line->out = b->qkv;
    line->out_stride = q + 2 * kv;
    return LS_OK;
}

static ls_status add_attn(builder *b, const ls_op *op, const ls_op *qkv, int index, ls_error *err) {
    const op_attn *a = &op->attn;
    const ls_bind *bind = &b->rank->bind;
    if (qkv->kind != OP_QKV || a->d_head > 128 || a->d_head % 16 != 0 || bind->kv_dtype != bind->dtype) {
        return refuse(err, "its heads have more than 128 elements or no multiple of 16, or the KV dtype is another");
    }
    const int64_t layer = (int64_t)bind->n_pages * a->n_kv_loc * LS_PAGE_TOKENS * a->d_head;
    const size_t at = (size_t)(op->layer * layer) * ls_dtype_bytes(bind->kv_dtype);
    const int splits = ceil_div(b->how->max_len, DECODE_ATTN_TOKENS) + 1;
    persist_op *line = add_line(b, PERSIST_ATTN, index, op->layer);
    line->in = b->qkv;
    line->in_stride = (a->n_heads_loc + 2 * a->n_kv_loc) * a->d_head;
    line->in_op = b->n_ops - 2;
    line->out = b->att;
    line->out_stride = a->n_heads_loc * a->d_head;
    line->q_norm = vector(b, qkv->qkv.q_norm);
    line->k_norm = vector(b, qkv->qkv.k_norm);
    line->eps = qkv->qkv.eps;
    line->k_cache = (uint8_t *)bind->k_cache + at;
    line->v_cache = (uint8_t *)bind->v_cache + at;
    line->scale = a->scale;
    line->n_heads = a->n_heads_loc;
    line->n_kv = a->n_kv_loc;
    line->d_head = a->d_head;
    line->window = a->window_tokens;
    line->group = 2 * bytes_of_unit(b, a->d_head) <= b->chunk_bytes ? 2 : 1;
    line->max_splits = splits < DECODE_ATTN_SPLITS ? splits : DECODE_ATTN_SPLITS;
    add_maps(b, line, 2);
    return LS_OK;
}

/* out or ffn_out, and the exchange behind it. */
static ls_status add_row(builder *b, const ls_op *op, const ls_op *exchange, int index, ls_error *err) {
    const op_row *a = &op->row;
    const int d = b->rank->bind.d_model;
    persist_op *line = add_line(b, PERSIST_ROW, index + 1, op->layer);
    TRY(add_matrix(b, line, 0, a->weight, -1, 0, err));
    set_leaves(b, line, a->k_total, a->leaf_first, a->leaf_count, b->parts);
    line->rows = d;
    line->in = op->kind == OP_OUT ? b->att : b->act;
    line->in_stride = line->k;
    line->in_op = b->n_ops - 2;
    line->slot = a->slot;
    line->bias = vector(b, exchange->exchange.bias);
    b->last_h = b->n_ops - 1;
    b->last_h_slot ^= 1;
    line->out = b->h[b->last_h_slot];
    line->out_stride = d;
    return LS_OK;
}

static ls_status add_ffn_in(builder *b, const ls_op *op, int index, ls_error *err) {
    const op_ffn_in *a = &op->ffn_in;
    if (b->norm_apart) {
        add_norm(b, a->norm, a->eps, index, op->layer, false);
    }
    persist_op *line = add_line(b, PERSIST_FFN_IN, index, op->layer);
    TRY(add_matrix(b, line, 0, a->gate, a->gate_bias, 0, err));
    TRY(add_matrix(b, line, 1, a->up, a->up_bias, INT32_MAX, err));
    set_leaves(b, line, b->rank->bind.d_model, 0, LS_LEAVES, 1);
    take_x(b, line, a->norm, a->eps);
    line->rows = a->d_ffn_loc;
    line->unit = 2; /* two columns of act in a word */
    line->out = b->act;
    line->out_stride = a->d_ffn_loc;
    return LS_OK;
}

static ls_status add_head(builder *b, const ls_op *op, int index, ls_error *err) {
    const op_head *a = &op->head;
    if (b->norm_apart) {
        add_norm(b, a->norm, a->eps, index, op->layer, true);
    }
    persist_op *line = add_line(b, PERSIST_HEAD, index, op->layer);
    TRY(add_matrix(b, line, 0, a->weight, -1, 0, err));
    set_leaves(b, line, b->rank->bind.d_model, 0, LS_LEAVES, 1);
    take_x(b, line, a->norm, a->eps);
    line->rows = a->vocab_count;
    line->vocab_first = a->vocab_first;
    b->plan->args.n_vocab = a->vocab_count;
    return LS_OK;
}

static void add_embed(builder *b, const ls_op *op, const ls_op *exchange, int index) {
    const op_embed *a = &op->embed;
    const ls_bind *bind = &b->rank->bind;
    const ls_weight *table = weight(b, a->table);
    persist_op *line = add_line(b, PERSIST_EMBED, index + 1, op->layer);
    line->rows = bind->d_model;
    line->slot = a->slot;
    line->bias = vector(b, exchange->exchange.bias);
    line->out = b->h[b->last_h_slot];
    line->out_stride = bind->d_model;
    b->last_h = b->n_ops - 1;
    b->plan->args.embed = (decode_embed_args){.step = b->plan->args.step,
                                              .table = table->data,
                                              .scale = table->scale,
                                              .format = table->format,
                                              .d = bind->d_model,
                                              .vocab_first = a->vocab_first,
                                              .vocab_count = a->vocab_count,
                                              .takes_input_rows = bind->group.rank == 0};
    for (int i = 0; i <= LS_LEAVES; i++) {
        b->plan->args.embed.border[i] = (int32_t)leaf_border(bind->d_model, i);
    }
}

/* embed exchange (qkv attn out exchange ffn_in ffn_out exchange)* head sample */
static ls_status add_ops(builder *b, const ls_op *op, int n_ops, ls_error *err) {
    for (int i = 0; i < n_ops; i++) {
        const bool sums = op[i].kind == OP_EMBED || op[i].kind == OP_OUT || op[i].kind == OP_FFN_OUT;
        if (b->n_ops + 2 > PERSIST_MAX_OPS || (sums && (i + 1 == n_ops || op[i + 1].kind != OP_EXCHANGE)) ||
            (op[i].kind == OP_ATTN && i == 0)) {
            return refuse(err, "it has too many ops, or they come in another order than a transformer's");
        }
        switch (op[i].kind) {
        case OP_EMBED:
            add_embed(b, &op[i], &op[i + 1], i);
            break;
        case OP_QKV:
            TRY(add_qkv(b, &op[i], i, err));
            break;
        case OP_ATTN:
            TRY(add_attn(b, &op[i], &op[i - 1], i, err));
            break;
        case OP_OUT:
        case OP_FFN_OUT:
            TRY(add_row(b, &op[i], &op[i + 1], i, err));
            break;
        case OP_FFN_IN:
            TRY(add_ffn_in(b, &op[i], i, err));
            break;
        case OP_HEAD:
            TRY(add_head(b, &op[i], i, err));
            break;
        default: /* exchange and sample belong to the ops before them */
            break;
        }
    }
    for (int i = 0; i < b->n_ops; i++) {
        if ((int64_t)b->plan->op[i].rows * b->how->blocks > INT32_MAX) {
            return refuse(err, "a matrix has too many rows");
        }
    }
    return LS_OK;
}

/* ---- Room ---- */

static int64_t most_i64(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static int count_lines(const ls_op *op, int n_ops, bool norm_apart) {
    int n = 0;
    for (int i = 0; i < n_ops; i++) {
        n += op[i].kind != OP_EXCHANGE && op[i].kind != OP_SAMPLE;
        n += norm_apart && (op[i].kind == OP_QKV || op[i].kind == OP_FFN_IN || op[i].kind == OP_HEAD);
    }
    return n;
}

/* Vectors that cross SMs, by the widest op of each kind. */
static void take_buffers(builder *b, const ls_op *op, int n_ops) {
    persist_args *args = &b->plan->args;
    const ls_bind *bind = &b->rank->bind;
    const int64_t rows = b->plan->rows, d = bind->d_model;
    int64_t qkv = 0, att = 0, act = 0, partial = 0;
    for (int i = 0; i < n_ops; i++) {
        if (op[i].kind == OP_ATTN) {
            const op_attn *a = &op[i].attn;
            const int64_t groups = (int64_t)a->n_kv_loc * ceil_div(a->n_heads_loc / a->n_kv_loc, DECODE_ATTN_HEADS);
            qkv = most_i64(qkv, (int64_t)(a->n_heads_loc + 2 * a->n_kv_loc) * a->d_head);
            att = most_i64(att, (int64_t)a->n_heads_loc * a->d_head);
            partial = most_i64(partial, groups * (ceil_div(b->how->max_len, DECODE_ATTN_TOKENS) + 1) *
                                            DECODE_ATTN_HEADS * (a->d_head + 2));
        } else if (op[i].kind == OP_FFN_IN) {
            act = most_i64(act, op[i].ffn_in.d_ffn_loc);
        }
    }
    args->op = take(b, (size_t)count_lines(op, n_ops, b->norm_apart) * sizeof(persist_op));
    b->qkv = take_words(b, rows * qkv);
    b->att = take_words(b, rows * att);
    b->act = take_words(b, rows * act);
    b->h[0] = take_words(b, rows * d);
    b->h[1] = take_words(b, rows * d);
    b->x = b->norm_apart ? take_words(b, rows * d) : NULL;
    args->partial = take_words(b, rows * partial);
    args->offer = take_words(b, (int64_t)b->plan->grid * CUDA_MAX_DECODE * 4);
    if (bind->group.size > 1) {
        uint64_t *node = take_words(b, PERSIST_ROOM_WORDS(rows, d));
        args->node[bind->group.rank] = node;
        args->stuck = (persist_stuck *)(node + PERSIST_STUCK_AT(rows, d));
    } else {
        args->node[0] = b->parts > 1 ? take_words(b, PERSIST_BESTS_AT(rows, d)) : NULL;
        args->stuck = take(b, sizeof(persist_stuck));
    }
    args->wait = take(b, (size_t)b->plan->grid * (PERSIST_WARPS + 1) * sizeof(persist_wait));
    args->launches = take(b, sizeof(uint32_t));
}

/* The longest chunk: of a matmul's tile, or of attention. */
static int longest_chunk(const builder *b) {
    int most = 1;
    for (int i = 0; i < b->n_ops; i++) {
        const persist_op *op = &b->plan->op[i];
        const int bytes =
            op->kind == PERSIST_ATTN ? op->group * bytes_of_unit(b, op->d_head) : op->piece_bytes * DECODE_TILE;
        most = bytes > most ? bytes : most;
    }
    return align_to(most, 1024);
}

/* The ring, then what warps share; x of as many ops as fit beside a ring that is deep enough. */
static ls_status cut_shared(builder *b, int d_head, ls_error *err) {
    persist_plan *plan = b->plan;
    persist_args *args = &plan->args;
    const ls_bind *bind = &b->rank->bind;
    const int rows = plan->rows, columns = rows > 8 ? 16 : 8;
    const int most = b->rank->facts.shared_bytes_per_block;
    const int chunk = longest_chunk(b);
    int unused[2];
    args->own_rows = ceil_div(bind->d_model, (int)plan->grid);
    args->attn_warps = decode_attn_warps(b->rank, d_head, &unused[0], &unused[1]);
    args->attn_warps = args->attn_warps < PERSIST_WARPS ? args->attn_warps : PERSIST_WARPS;
    args->attn_warp_bytes = DECODE_ATTN_HEADS * (d_head + DECODE_ATTN_UNIT) * (int)sizeof(float);
    const int sums = 2 * PERSIST_WARPS * columns * DECODE_TILE * (int)sizeof(float);
    const int h = align_to(rows * args->own_rows * (int)sizeof(float), 16);
    const int squares = 2 * PERSIST_NORM_WARPS * (int)sizeof(float), fault = CUDA_MAX_DECODE * (int)sizeof(int32_t);
    const int kept = bind->d_model > 4 * MAX_NORM_THREADS ? align_to(bind->d_model * (int)sizeof(float), 16) : 0;
    const int fixed = BARRIER_BYTES + LINE_BYTES + sums + h + squares + fault + WATCH_BYTES + kept;
    args->x_bytes = align_to(DECODE_ATTN_BYTES + args->attn_warps * args->attn_warp_bytes, 16);
    args->scratch_bytes = 0;
    for (int i = 0; i < b->n_ops; i++) {
        const int bytes = plan->op[i].x_pitch * rows, ring = most - fixed - bytes;
        if (ring < LEAST_RING || ring < 4 * chunk) {
            args->scratch_bytes = bytes > args->scratch_bytes ? bytes : args->scratch_bytes;
        } else if (bytes > args->x_bytes) {
            args->x_bytes = bytes;
        }
    }
    const int ring = b->how->ring_bytes > 0 && b->how->ring_bytes < most - fixed - args->x_bytes
                         ? b->how->ring_bytes
                         : most - fixed - args->x_bytes;
    if ((most - fixed - args->x_bytes) / chunk < LEAST_SLOTS) {
        return refuse(err, "the GPU's shared memory is too small");
    }
    args->slot_bytes = chunk;
    args->n_slots = ring / chunk < LEAST_SLOTS     ? LEAST_SLOTS
                    : ring / chunk < PERSIST_SLOTS ? ring / chunk
                                                   : PERSIST_SLOTS;
    args->window_bytes = b->how->window_bytes > 0 ? b->how->window_bytes : PERSIST_WINDOW;
    args->at_barriers = args->n_slots * chunk;
    args->at_lines = args->at_barriers + BARRIER_BYTES;
    args->at_sums = args->at_lines + LINE_BYTES;
    args->at_h = args->at_sums + sums;
    args->at_squares = args->at_h + h;
    args->at_fault = args->at_squares + squares;
    args->at_watch = args->at_fault + fault;
    args->at_kept = args->at_watch + WATCH_BYTES;
    args->at_x = args->at_kept + kept;
    plan->shared_bytes = (unsigned)(args->at_x + args->x_bytes);
    args->scratch_bytes = (args->scratch_bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
    args->scratch = take(b, (size_t)args->scratch_bytes * plan->grid);
    return LS_OK;
}

/* As many as asked for, or four where there are rows enough, if the grid and the rank's leaves can be cut so. */
static int parts_of(const builder *b) {
    const int leaves = LS_LEAVES / b->rank->bind.group.size;
    int parts = b->how->parts > 0 ? b->how->parts : b->how->rows > FUSED_ROWS ? 4 : 1;
    while (parts > 1 && (b->how->blocks % parts != 0 || leaves % parts != 0)) {
        parts /= 2;
    }
    return parts;
}

ls_status persist_plan_build(persist_plan *out, const cuda_rank *rank, const ls_op *op, int n_ops,
                             const persist_options *how, CUdeviceptr room, ls_error *err) {
    const ls_bind *bind = &rank->bind;
    builder b = {.plan = out, .rank = rank, .how = how, .next = room};
    const ls_op *attn = NULL;
    int i_head = -1;
    memset(out, 0, sizeof *out);
    for (int i = 0; i < n_ops; i++) {
        attn = op[i].kind == OP_ATTN ? &op[i] : attn;
        i_head = op[i].kind == OP_HEAD ? i : i_head;
    }
    if (rank->facts.cc_major < 9 || rank->jit_us > 0) {
        return refuse(err, "it needs code made for a chip of sm_90 or later");
    }
    if (attn == NULL || i_head < 0 || op[0].kind != OP_EMBED || bind->d_model % 8 != 0) {
        return refuse(err, "it has no embedding, attention or head, or a width that is no multiple of 8");
    }
    b.format = weight(&b, op[i_head].head.weight)->format;
    if (b.format == LS_INT8 && bind->dtype != LS_BF16) {
        return refuse(err, "int8 weights with another run dtype than bf16");
    }
    out->rows = how->rows;
    out->grid = (unsigned)how->blocks;
    out->here = how->here > 1 ? how->here : 1;
    const int which = b.format == LS_INT8 ? 3 : (int)b.format - LS_F32;
    out->kernel = persist_kernel_names[2 * (2 * which + (how->rows > 8)) + (how->here > 1)];
    out->args = (persist_args){.step = (const void *)(uintptr_t)rank->step, // NOLINT(performance-no-int-to-ptr)
                               .rope = bind->rope,
                               .logits = bind->buf[BUF_LOGITS],
                               .drawn = (void *)(uintptr_t)rank->drawn, // NOLINT(performance-no-int-to-ptr)
                               .fault = (int32_t *)bind->fault,
                               .timeout_ns = (int64_t)TIMEOUT_S * 1000000000,
                               .d = bind->d_model,
                               .rank = bind->group.rank,
                               .n_ranks = bind->group.size,
                               .m_max = how->rows};
    b.chunk_bytes = how->chunk_bytes > 0 ? how->chunk_bytes : PERSIST_CHUNK;
    b.norm_apart = how->norm_apart == 0 ? how->rows > FUSED_ROWS : how->norm_apart > 0;
    b.parts = parts_of(&b);
    take_buffers(&b, op, n_ops);
    TRY(add_ops(&b, op, n_ops, err));
    out->args.n_ops = b.n_ops;
    out->args.map = take(&b, (size_t)out->args.n_maps * sizeof(persist_map));
    TRY(cut_shared(&b, attn->attn.d_head, err));
    out->room_bytes = (size_t)(b.next - room);
    return LS_OK;
}

/* ---- Maps ---- */

/* Boxes of `width` bytes and `height` rows of a matrix. */
static ls_status encode(const cuda_rank *rank, persist_map *out, const void *from, int64_t row_bytes, int64_t rows,
                        int width, int height, CUtensorMapSwizzle swizzle, ls_error *err) {
    const cuuint64_t size[] = {(cuuint64_t)row_bytes / PERSIST_ELEMENT, (cuuint64_t)rows},
                     stride = (cuuint64_t)row_bytes;
    const cuuint32_t box[] = {(cuuint32_t)(width / PERSIST_ELEMENT), (cuuint32_t)height}, each[] = {1, 1};
    CUtensorMap map;
    _Static_assert(sizeof map == sizeof *out, "the kernel's map is CUDA's");
    TRY(cuda_check(
        rank,
        rank->driver->cuTensorMapEncodeTiled(&map, CU_TENSOR_MAP_DATA_TYPE_UINT64, 2, (void *)(uintptr_t)from, size,
                                             &stride, box, each, CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle,
                                             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE),
        "a map of the persistent decode kernel", err));
    memcpy(out, &map, sizeof map);
    return LS_OK;
}

static int rows_of_matrix(const persist_op *op, int i) {
    return op->kind == PERSIST_FFN_IN ? op->rows
                                      : (i + 1 < op->n_matrices ? op->first_row[i + 1] : op->rows) - op->first_row[i];
}

/* In the order that kern/persist_producer.cuh finds them in. */
static ls_status encode_op(const cuda_rank *rank, const persist_op *op, persist_map *out, ls_error *err) {
    const ls_bind *bind = &rank->bind;
    if (op->kind == PERSIST_ATTN) {
        for (int i = 0; i < 2; i++) {
            TRY(encode(rank, &out[i], i == 0 ? op->k_cache : op->v_cache,
                       op->d_head * (int64_t)ls_dtype_bytes(bind->kv_dtype),
                       (int64_t)bind->n_pages * op->n_kv * LS_PAGE_TOKENS, PERSIST_PANEL, DECODE_ATTN_UNIT,
                       CU_TENSOR_MAP_SWIZZLE_128B, err));
        }
        return LS_OK;
    }
    const int families = families_of(op);
    for (int i = 0; i < op->n_maps; i++) {
        const int family = i % families, which = i / families % op->n_matrices, h = i / families / op->n_matrices;
        const persist_matrix *matrix = &op->matrix[which];
        TRY(encode(rank, &out[i], matrix->w, op->row_bytes, rows_of_matrix(op, which),
                   family == families - 1 ? op->last_bytes : op->piece_bytes, DECODE_TILE >> h,
                   CU_TENSOR_MAP_SWIZZLE_NONE, err));
    }
    return LS_OK;
}

static ls_status copy_to_room(const cuda_rank *rank, const void *to, const void *from, size_t bytes, ls_error *err) {
    return cuda_check(rank, rank->driver->cuMemcpyHtoDAsync((CUdeviceptr)(uintptr_t)to, from, bytes, rank->stream),
                      "copying the table of a plan", err);
}

static ls_status upload(const cuda_rank *rank, const persist_plan *plan, ls_error *err) {
    const persist_args *args = &plan->args;
    const size_t map_bytes = (size_t)args->n_maps * sizeof(persist_map);
    persist_map *map = aligned_alloc(sizeof *map, map_bytes);
    ls_status st = LS_OK;
    if (map == NULL) {
        return error_set(err, LS_ENOMEM, "the persistent decode kernel: out of memory");
    }
    for (int i = 0; i < args->n_ops && st == LS_OK; i++) {
        st = encode_op(rank, &plan->op[i], map + plan->op[i].map, err);
    }
    TRY_GOTO(st, done);
    TRY_GOTO(copy_to_room(rank, args->op, plan->op, (size_t)args->n_ops * sizeof(persist_op), err), done);
    TRY_GOTO(copy_to_room(rank, args->map, map, map_bytes, err), done);
    TRY_GOTO(cuda_check(rank, rank->driver->cuStreamSynchronize(rank->stream), "copying maps", err), done);
done:
    free(map);
    return st;
}

/* ---- Launching ---- */

ls_status persist_prepare(cuda_rank *rank, const persist_plan *plan, CUfunction fn, ls_error *err) {
    int per_sm = 0;
    TRY(cuda_check(rank,
                   rank->driver->cuFuncSetAttribute(fn, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                                    rank->facts.shared_bytes_per_block),
                   plan->kernel, err));
    TRY(cuda_check(
        rank,
        rank->driver->cuOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, fn, PERSIST_ALL_THREADS, plan->shared_bytes),
        plan->kernel, err));
    if ((unsigned)(per_sm * rank->facts.sm_count) < plan->grid * (unsigned)plan->here) {
        return refuse(err, "the GPU does not hold all its blocks at once");
    }
    return upload(rank, plan, err);
}

ls_status persist_launch(cuda_rank *rank, const persist_plan *const *plan, int n, CUfunction fn, ls_error *err) {
    persist_shared_args all = {0}; /* the first one is all that the kernel of a rank alone takes */
    unsigned shared_bytes = 0;
    for (int i = 0; i < n; i++) {
        all.member[i] = plan[i]->args;
        shared_bytes = plan[i]->shared_bytes > shared_bytes ? plan[i]->shared_bytes : shared_bytes;
    }
    return cuda_launch_together(rank, fn, plan[0]->kernel, plan[0]->grid, (unsigned)n, PERSIST_ALL_THREADS,
                                shared_bytes, (void *[]){&all}, err);
}

/* ---- When it fails ---- */

static const char *layer_text(char out[32], int layer) {
    out[0] = '\0';
    if (layer >= 0) {
        snprintf(out, 32, " of layer %d", layer);
    }
    return out;
}

static int op_without(const persist_stuck *stuck) {
    return (int)(uint32_t)stuck->missing;
}

/* Ranks that wait for each other, or for one that waits, are all stuck: the earliest op is where it began. What a rank that is waited for
 * itself waited for, if for none, is the cause. */
ls_status persist_check(const persist_stuck *stuck, int n_ranks, const ls_op *op, int64_t timeout_ns, ls_error *err) {
    int first = -1, alone = -1;
    char where[32];
    for (int r = 0; r < n_ranks; r++) {
        if (stuck[r].missing != 0 && (first < 0 || op_without(&stuck[r]) < op_without(&stuck[first]))) {
            first = r;
        } else if (stuck[r].claimed != 0 && stuck[r].missing == 0 && alone < 0) {
            alone = r;
        }
    }
    const int from = first >= 0 ? (int)(stuck[first].missing >> 32) - 1 : -1;
    if (first >= 0 && stuck[from].claimed != 0 && stuck[from].missing == 0) {
        first = -1;
        alone = from;
    }
    if (first >= 0) {
        const ls_op *o = &op[op_without(&stuck[first])];
        return error_set(
            err, LS_EABORTED,
            "rank %d waited %.1f s in op %s%s of the persistent decode kernel for rank %d, from which nothing "
            "came: its GPU has stopped, or the link between them is broken",
            first, (double)timeout_ns / 1e9, op_kind_name(o->kind), layer_text(where, o->layer), from);
    }
    if (alone >= 0) {
        const persist_stuck *it = &stuck[alone];
        return error_set(
            err, LS_EABORTED, "rank %d: block %d of the persistent decode kernel waited in vain in op %d (%s%s)", alone,
            it->block, it->op, it->op < 0 ? "start" : op_kind_name(op[it->op].kind), layer_text(where, it->layer));
    }
    return LS_OK;
}
