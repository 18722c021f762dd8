/* How the CPU back end keeps what verify compares. See verify.h. */
#include "engine/verify.h"

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

/* Rows of f32 words in a buffer: where the first lies, and how far apart they are. NULL for what is kept otherwise. */
static float *words(const ls_engine *engine, int rank, const ls_op *op, verify_view view, int64_t count,
                    int64_t *stride) {
    static const ls_buf buf[VIEWS] = {
        [VIEW_H] = BUF_H,     [VIEW_X] = BUF_X,       [VIEW_Q] = BUF_QKV,        [VIEW_ATT] = BUF_ATT,
        [VIEW_ACT] = BUF_ACT, [VIEW_PART] = BUF_PART, [VIEW_LOGITS] = BUF_LOGITS};
    if (view == VIEW_K || view == VIEW_V || view == VIEW_SAMPLE) {
        return NULL;
    }
    const ls_spec *spec = &engine->model->spec;
    const ls_bind *bind = &engine->rank[rank].bind;
    float *data = bind->buf[buf[view]];
    *stride = count;
    if (view == VIEW_Q) {
        *stride += 2 * shard_kv_heads(spec->n_kv_heads, bind->group).count * spec->d_head;
    } else if (view == VIEW_PART) {
        int slot = op->kind == OP_EXCHANGE ? op->exchange.slot : op->kind == OP_EMBED ? op->embed.slot : op->row.slot;
        data += (int64_t)slot * bind->m_max * bind->d_model;
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

void verify_read(const ls_engine *engine, int rank, const ls_op *op, verify_view view, const ls_step *step,
                 float *out) {
    verify_part part = verify_part_of(engine, rank, op, view, step);
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
    const int d = engine->model->spec.d_head;
    const bool is_act = view == VIEW_X || view == VIEW_Q || view == VIEW_ATT || view == VIEW_ACT;
    const ls_dtype dtype = is_act ? engine->config.dtype : LS_F32;
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
