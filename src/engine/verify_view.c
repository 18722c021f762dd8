/* How back ends keep what verify compares. See verify.h. */
#include "engine/verify.h"

#include <stdlib.h>

const char *verify_view_name(verify_view view) {
    static const char *const names[VIEWS] = {"h",   "x",   "q",    "k cache", "v cache",
                                             "att", "act", "part", "logits",  "sample"};
    return (unsigned)view < VIEWS ? names[view] : "unknown";
}

verify_part verify_part_of(const ls_engine *engine, int rank, const ls_op *op, verify_view view, const ls_step *step) {
    const ls_spec *spec = &engine->model->spec;
    const ls_group group = {rank, engine->config.n_ranks};
    const int64_t d = spec->d_head;
    const int64_t heads_loc = spec->n_heads / group.size;
    const bool of_outputs = op->kind == OP_HEAD || op->kind == OP_SAMPLE;
    int n_rows = of_outputs && view != VIEW_H ? step->n_out : step->n_rows;
    shard_range range = {0, spec->d_model};
    int64_t whole = spec->d_model;
    switch (view) {
    case VIEW_Q:
    case VIEW_ATT:
        range = (shard_range){rank * heads_loc * d, heads_loc * d};
        whole = spec->n_heads * d;
        break;
    case VIEW_K:
    case VIEW_V:
        range = shard_kv_heads(spec->n_kv_heads, group);
        range = (shard_range){range.first * d, range.count * d};
        whole = spec->n_kv_heads * d;
        break;
    case VIEW_ACT:
        range = shard_leaves(spec->d_ffn, group);
        whole = spec->d_ffn;
        break;
    case VIEW_LOGITS:
        range = shard_leaves(spec->n_vocab, group);
        whole = spec->n_vocab;
        break;
    case VIEW_SAMPLE:
        range = (shard_range){0, 2};
        whole = 2;
        break;
    default:
        break;
    }
    return (verify_part){n_rows, range.first, range.count, whole};
}

static const ls_buf buffer_of[VIEWS] = {
    [VIEW_H] = BUF_H,     [VIEW_X] = BUF_X,       [VIEW_Q] = BUF_QKV,        [VIEW_ATT] = BUF_ATT,
    [VIEW_ACT] = BUF_ACT, [VIEW_PART] = BUF_PART, [VIEW_LOGITS] = BUF_LOGITS};

static bool is_in_cache(verify_view view) {
    return view == VIEW_K || view == VIEW_V;
}

static bool is_act(verify_view view) {
    return view == VIEW_X || view == VIEW_Q || view == VIEW_ATT || view == VIEW_ACT;
}

static int slot_of(const ls_op *op) {
    return op->kind == OP_EXCHANGE ? op->exchange.slot : op->kind == OP_EMBED ? op->embed.slot : op->row.slot;
}

/* Elements of a row of BUF_QKV, of which q is the first. */
static int64_t row_of_qkv(const ls_engine *engine, int rank) {
    const ls_spec *spec = &engine->model->spec;
    const ls_group group = {rank, engine->config.n_ranks};
    return (spec->n_heads / group.size + 2 * shard_kv_heads(spec->n_kv_heads, group).count) * spec->d_head;
}

/* Rows of f32 words in a buffer: where the first lies, and how far apart they are. NULL for what is kept otherwise. */
static float *words(const ls_engine *engine, int rank, const ls_op *op, verify_view view, int64_t count,
                    int64_t *stride) {
    if (is_in_cache(view) || view == VIEW_SAMPLE) {
        return NULL;
    }
    const ls_bind *bind = &engine->rank[rank].bind;
    float *data = bind->buf[buffer_of[view]];
    *stride = count;
    if (view == VIEW_Q) {
        *stride = row_of_qkv(engine, rank);
    } else if (view == VIEW_PART) {
        data += (int64_t)slot_of(op) * bind->m_max * bind->d_model;
    }
    return data;
}

/* Where the cache keeps head `head` of row m, counted in elements from *base. */
static int64_t cache_place(const ls_engine *engine, int rank, const ls_op *op, verify_view view, const ls_step *step,
                           int m, int head, uint8_t **base) {
    const ls_spec *spec = &engine->model->spec;
    const ls_bind *bind = &engine->rank[rank].bind;
    int n_kv_loc = (int)shard_kv_heads(spec->n_kv_heads, bind->group).count;
    int page = step->seq[step->seq_of[m]].page[step->pos[m] / LS_PAGE_TOKENS];
    void *cache = view == VIEW_K ? bind->k_cache : bind->v_cache;
    *base = kv_page(bind, cache, op->layer, page, head, n_kv_loc, spec->d_head);
    return (int64_t)(step->pos[m] % LS_PAGE_TOKENS) * spec->d_head;
}

static void read_sample(const ls_engine *engine, int rank, int n_rows, float *out) {
    const ls_sample_part *part = engine->rank[rank].bind.buf[BUF_SAMPLE];
    for (int i = 0; i < n_rows; i++) {
        bool any = part[i].n_best > 0;
        out[2 * i] = any ? part[i].best[0].z : -INFINITY;
        out[2 * i + 1] = any ? (float)part[i].best[0].id : -1.0F; /* exact: ids are below 2^24 */
    }
}

/* ---- A rank on a device: the same, fetched from there or brought there (backend/cuda/cuda.h says how it lies) ---- */

/* A node of the sums in BUF_PART: kernels leave one or several of each slot. */
static float *device_node(const ls_engine *engine, const ls_op *op, int node) {
    const ls_bind *bind = &engine->rank[0].bind;
    return (float *)bind->buf[BUF_PART] + ((int64_t)slot_of(op) * LS_LEAVES + node) * bind->m_max * bind->d_model;
}

/* The sum of all nodes, up the tree; what cannot be fetched is NaN. */
static void device_read_parts(const ls_engine *engine, const ls_op *op, int64_t n, float *out) {
    float *nodes = malloc(((size_t)n * LS_LEAVES + 1) * sizeof *nodes);
    bool good = nodes != NULL;
    for (int i = 0; i < LS_LEAVES && good; i++) {
        good = engine->backend->copy_out(engine, device_node(engine, op, i), nodes + i * n, (size_t)n * sizeof *nodes,
                                         NULL) == LS_OK;
    }
    for (int64_t k = 0; k < n; k++) {
        float node[LS_LEAVES] = {0};
        for (int i = 0; i < LS_LEAVES && good; i++) {
            node[i] = nodes[i * n + k];
        }
        out[k] = good ? leaf_tree(node, LS_LEAVES) : NAN;
    }
    free(nodes);
}

/* All in the first node. */
static void device_write_parts(const ls_engine *engine, const ls_op *op, int64_t n, const float *in) {
    float *zeros = calloc((size_t)n + 1, sizeof *zeros);
    for (int i = 0; i < LS_LEAVES && zeros != NULL; i++) {
        engine->backend->copy_in(engine, device_node(engine, op, i), i == 0 ? in : zeros, (size_t)n * sizeof *zeros,
                                 NULL);
    }
    free(zeros);
}

/* The i-th piece of a view that lies together, its elements and their type: a row, or a head of a row of the cache. */
static void *device_piece(const ls_engine *engine, const ls_op *op, verify_view view, const ls_step *step,
                          const verify_part *part, int64_t i, int64_t *n, ls_dtype *dtype) {
    const ls_bind *bind = &engine->rank[0].bind;
    const int d = engine->model->spec.d_head;
    if (is_in_cache(view)) {
        uint8_t *base;
        int64_t heads = part->count / d;
        int64_t at = cache_place(engine, 0, op, view, step, (int)(i / heads), (int)(i % heads), &base);
        *n = d;
        *dtype = engine->config.kv_dtype;
        return base + (size_t)at * ls_dtype_bytes(*dtype);
    }
    *n = part->count;
    *dtype = is_act(view) ? engine->config.dtype : LS_F32;
    const int64_t stride = view == VIEW_Q ? row_of_qkv(engine, 0) : part->count;
    return (uint8_t *)bind->buf[buffer_of[view]] + (size_t)(i * stride) * ls_dtype_bytes(*dtype);
}

/* All pieces, one way or the other; what cannot be fetched is NaN. */
static void device_move(const ls_engine *engine, const ls_op *op, verify_view view, const ls_step *step, float *out,
                        const float *in) {
    verify_part part = verify_part_of(engine, 0, op, view, step);
    const int64_t n_pieces = is_in_cache(view) ? part.n_rows * part.count / engine->model->spec.d_head : part.n_rows;
    float *piece = malloc((size_t)(part.count + 1) * sizeof *piece); /* wide enough for any dtype */
    for (int64_t i = 0; i < n_pieces; i++) {
        int64_t n;
        ls_dtype dtype;
        void *at = device_piece(engine, op, view, step, &part, i, &n, &dtype);
        const size_t bytes = (size_t)n * ls_dtype_bytes(dtype);
        for (int64_t k = 0; in != NULL && piece != NULL && k < n; k++) {
            store_as(dtype, piece, k, in[i * n + k]);
        }
        if (in != NULL && piece != NULL) {
            engine->backend->copy_in(engine, at, piece, bytes, NULL);
        }
        bool good = in == NULL && piece != NULL && engine->backend->copy_out(engine, at, piece, bytes, NULL) == LS_OK;
        for (int64_t k = 0; in == NULL && k < n; k++) {
            out[i * n + k] = good ? load_as(dtype, piece, k) : NAN;
        }
    }
    free(piece);
}

static void device_read_sample(const ls_engine *engine, int n_rows, float *out) {
    const rank_memory *rank = &engine->rank[0];
    const float *logits = rank->bind.buf[BUF_LOGITS];
    for (int64_t i = 0; i < n_rows; i++) {
        int32_t token = -1;
        float z = -INFINITY;
        if (engine->backend->copy_out(engine, rank->result + i, &token, sizeof token, NULL) == LS_OK && token >= 0) {
            engine->backend->copy_out(engine, logits + i * engine->model->spec.n_vocab + token, &z, sizeof z, NULL);
        }
        out[2 * i] = z;
        out[2 * i + 1] = (float)token;
    }
}

/* ---- Any rank ---- */

void verify_read(const ls_engine *engine, int rank, const ls_op *op, verify_view view, const ls_step *step,
                 float *out) {
    verify_part part = verify_part_of(engine, rank, op, view, step);
    if (engine->config.on_device && view == VIEW_SAMPLE) {
        device_read_sample(engine, part.n_rows, out);
        return;
    }
    if (engine->config.on_device && view == VIEW_PART) {
        device_read_parts(engine, op, part.n_rows * part.count, out);
        return;
    }
    if (engine->config.on_device) {
        device_move(engine, op, view, step, out, NULL);
        return;
    }
    const int d = engine->model->spec.d_head;
    int64_t stride;
    const float *data = words(engine, rank, op, view, part.count, &stride);
    if (view == VIEW_SAMPLE) {
        read_sample(engine, rank, part.n_rows, out);
        return;
    }
    for (int m = 0; m < part.n_rows; m++) {
        float *row = out + m * part.count;
        if (data != NULL) {
            memcpy(row, data + m * stride, (size_t)part.count * sizeof *row);
            continue;
        }
        for (int64_t i = 0; i < part.count; i++) {
            uint8_t *base;
            int64_t at = cache_place(engine, rank, op, view, step, m, (int)(i / d), &base);
            row[i] = load_as(engine->config.kv_dtype, base, at + i % d);
        }
    }
}

void verify_write(ls_engine *engine, int rank, const ls_op *op, verify_view view, const ls_step *step,
                  const float *in) {
    verify_part part = verify_part_of(engine, rank, op, view, step);
    if (engine->config.on_device && view == VIEW_PART) {
        device_write_parts(engine, op, part.n_rows * part.count, in);
        return;
    }
    if (engine->config.on_device) {
        device_move(engine, op, view, step, NULL, in);
        return;
    }
    const int d = engine->model->spec.d_head;
    const ls_dtype dtype = is_act(view) ? engine->config.dtype : LS_F32;
    int64_t stride;
    float *data = words(engine, rank, op, view, part.count, &stride);
    for (int m = 0; m < part.n_rows; m++) {
        const float *row = in + m * part.count;
        for (int64_t i = 0; i < part.count; i++) {
            if (data != NULL) {
                data[m * stride + i] = round_to(dtype, row[i]);
                continue;
            }
            uint8_t *base;
            int64_t at = cache_place(engine, rank, op, view, step, m, (int)(i / d), &base);
            store_as(engine->config.kv_dtype, base, at + i % d, row[i]);
        }
    }
}
