/*
 * Attention over paged KV in splits of 256 tokens. Formulas and order in ops.h.
 *
 * Queries that meet the same keys go together, up to QUERIES of them: the heads of one KV head where a sequence has one
 * row, else neighbouring rows of one head. A later row's keys are then multiplied with an earlier row's query too, and
 * dropped: each query's maximum, sums and combination run over its own positions alone.
 */
#include "backend/cpu/cpu.h"

enum { QUERIES = 12 };

typedef struct attn_node {
    float m, l;
    float o[LS_MAX_HEAD];
} attn_node;

/* Queries q[i * q_stride], one head each, at positions [lo[i], end[i]). */
typedef struct attn_group {
    const ls_bind *bind;
    const op_attn *a;
    int layer, kv_head, n;
    const int32_t *page;
    const float *q;
    int64_t q_stride;
    int lo[QUERIES], end[QUERIES];
} attn_group;

static int max_int(int a, int b) {
    return a > b ? a : b;
}

static int min_int(int a, int b) {
    return a < b ? a : b;
}

static void *row_of(const attn_group *g, void *cache, int pos) {
    const ls_bind *bind = g->bind;
    uint8_t *page =
        kv_page(bind, cache, g->layer, g->page[pos / LS_PAGE_TOKENS], g->kv_head, g->a->n_kv_loc, g->a->d_head);
    return page + (size_t)(pos % LS_PAGE_TOKENS * g->a->d_head) * kv_bytes(bind);
}

/* End of the page that `pos` lies in, or `end`. */
static int page_end(int pos, int end) {
    return min_int((pos / LS_PAGE_TOKENS + 1) * LS_PAGE_TOKENS, end);
}

/* s[i][j] = q_i . k of position from + j, for all queries and positions [from, to). */
static void scores(const attn_group *g, int from, int to, float s[QUERIES][LS_SPLIT_TOKENS]) {
    for (int pos = from, next; pos < to; pos = next) {
        next = page_end(pos, to);
        const ls_weight k = {.format = g->bind->kv_dtype,
                             .data = row_of(g, g->bind->k_cache, pos),
                             .rows = next - pos,
                             .cols = g->a->d_head};
        const cpu_matmul job = {
            &k, column_leaves(&k), 0, k.rows, g->q, g->q_stride, g->n, s[0] + (pos - from), LS_SPLIT_TOKENS, NULL};
        bind_isa(g->bind)->matmul(&job);
    }
}

/* All queries against positions [from, to), within one split; node[i] of a query that has none there is left. */
static void attend_split(const attn_group *g, int from, int to, attn_node *node) {
    const cpu_isa *isa = bind_isa(g->bind);
    const int d = g->a->d_head;
    float s[QUERIES][LS_SPLIT_TOKENS];
    int first[QUERIES], last[QUERIES];
    scores(g, from, to, s);
    for (int i = 0; i < g->n; i++) {
        first[i] = max_int(from, g->lo[i]);
        last[i] = min_int(to, g->end[i]);
        if (first[i] >= last[i]) {
            continue;
        }
        float l = 0.0F;
        node[i].m = isa->softmax(s[i] + (first[i] - from), g->a->scale, last[i] - first[i]);
        for (int j = first[i]; j < last[i]; j++) {
            l += s[i][j - from];
        }
        node[i].l = l;
        memset(node[i].o, 0, (size_t)d * sizeof *node[i].o);
    }
    for (int pos = from, next; pos < to; pos = next) {
        next = page_end(pos, to);
        const void *v = row_of(g, g->bind->v_cache, pos);
        float wide[LS_PAGE_TOKENS * LS_MAX_HEAD];
        const bool widen = g->n > 2 && g->bind->kv_dtype != LS_F32;
        if (widen) {
            isa->widen(g->bind->kv_dtype, v, (int64_t)(next - pos) * d, wide);
        }
        const ls_dtype dtype = widen ? LS_F32 : g->bind->kv_dtype;
        for (int i = 0; i < g->n; i++) {
            const int a = max_int(pos, first[i]), b = min_int(next, last[i]);
            if (a < b) {
                const uint8_t *row = widen ? (const uint8_t *)wide : v;
                isa->axpy[dtype](node[i].o, row + (size_t)((a - pos) * d) * ls_dtype_bytes(dtype), s[i] + (a - from),
                                 b - a, d);
            }
        }
    }
}

static void combine(attn_node *all, const attn_node *next, int d_head) {
    float m = next->m > all->m ? next->m : all->m;
    float a = ls_exp(all->m - m);
    float b = ls_exp(next->m - m);
    all->m = m;
    all->l = all->l * a + next->l * b;
    for (int i = 0; i < d_head; i++) {
        all->o[i] = all->o[i] * a + next->o[i] * b;
    }
}

/* The queries' positions are known; out[i * out_stride] is query i's result. */
static void attend(const attn_group *g, float *out, int64_t out_stride) {
    attn_node all[QUERIES], next[QUERIES];
    int lo = g->lo[0], end = g->end[0];
    for (int i = 1; i < g->n; i++) {
        lo = min_int(lo, g->lo[i]);
        end = max_int(end, g->end[i]);
    }
    bool begun[QUERIES] = {false};
    for (int start = lo / LS_SPLIT_TOKENS * LS_SPLIT_TOKENS; start < end; start += LS_SPLIT_TOKENS) {
        const int from = max_int(start, lo), to = min_int(start + LS_SPLIT_TOKENS, end);
        attend_split(g, from, to, next);
        for (int i = 0; i < g->n; i++) {
            if (max_int(from, g->lo[i]) >= min_int(to, g->end[i])) {
                continue;
            }
            if (begun[i]) {
                combine(&all[i], &next[i], g->a->d_head);
            } else {
                all[i] = next[i];
            }
            begun[i] = true;
        }
    }
    for (int i = 0; i < g->n; i++) {
        bind_isa(g->bind)->divide(all[i].o, all[i].l, g->a->d_head, g->bind->dtype, out + i * out_stride);
    }
}

/* Query `i` of the group: row `row`'s positions. */
static void set_span(attn_group *g, int i, const ls_step *step, int row) {
    const int window = g->a->window_tokens;
    g->end[i] = step->pos[row] + 1;
    g->lo[i] = window > 0 && g->end[i] > window ? g->end[i] - window : 0;
}

/* Part `part` of a sequence that has one row: QUERIES heads of one KV head. */
static void attend_heads(attn_group *g, const ls_step *step, int row, int part, int heads_per_kv) {
    const int parts = (heads_per_kv + QUERIES - 1) / QUERIES, d = g->a->d_head;
    const int first = part % parts * QUERIES;
    g->kv_head = part / parts;
    g->n = min_int(QUERIES, heads_per_kv - first);
    const int64_t head = (int64_t)g->kv_head * heads_per_kv + first;
    const int64_t row_cols = (int64_t)(g->a->n_heads_loc + 2 * g->a->n_kv_loc) * d;
    g->q = (const float *)g->bind->buf[BUF_QKV] + row * row_cols + head * d;
    g->q_stride = d;
    for (int i = 0; i < g->n; i++) {
        set_span(g, i, step, row);
    }
    attend(g, (float *)g->bind->buf[BUF_ATT] + ((int64_t)row * g->a->n_heads_loc + head) * d, d);
}

/* QUERIES rows from `row` on of one head. */
static void attend_rows(attn_group *g, const ls_step *step, int row, int n, int head, int heads_per_kv) {
    const int d = g->a->d_head;
    g->kv_head = head / heads_per_kv;
    g->n = n;
    g->q_stride = (int64_t)(g->a->n_heads_loc + 2 * g->a->n_kv_loc) * d;
    g->q = (const float *)g->bind->buf[BUF_QKV] + row * g->q_stride + (int64_t)head * d;
    for (int i = 0; i < n; i++) {
        set_span(g, i, step, row + i);
    }
    const int64_t out_stride = (int64_t)g->a->n_heads_loc * d;
    attend(g, (float *)g->bind->buf[BUF_ATT] + row * out_stride + (int64_t)head * d, out_stride);
}

void ref_attn(const ls_op *op, int index, const ls_bind *bind, const ls_step *step, const ls_team *team) {
    (void)index;
    const op_attn *a = &op->attn;
    const int heads_per_kv = a->n_heads_loc / a->n_kv_loc;
    const int head_parts = a->n_kv_loc * ((heads_per_kv + QUERIES - 1) / QUERIES);
    attn_group g = {.bind = bind, .a = a, .layer = op->layer};
    int item = 0; /* dealt to the threads in turn, so that long and short ones mix */
    for (int s = 0; s < step->n_seqs; s++) {
        const ls_step_seq *seq = &step->seq[s];
        g.page = seq->page;
        for (int part = 0; part < head_parts && seq->n_rows == 1; part++) {
            if (item++ % team->n_threads == team->thread) {
                attend_heads(&g, step, seq->first_row, part, heads_per_kv);
            }
        }
        for (int i = 0; i < seq->n_rows && seq->n_rows > 1; i += QUERIES) {
            for (int head = 0; head < a->n_heads_loc; head++) {
                if (item++ % team->n_threads == team->thread) {
                    attend_rows(&g, step, seq->first_row + i, min_int(QUERIES, seq->n_rows - i), head, heads_per_kv);
                }
            }
        }
    }
}
