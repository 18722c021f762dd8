/* Implementations, guarded memory of R ranks, and runs. See harness.h. */
#include "harness.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "backend/cpu/cpu.h"
#include "backend/sample_math.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(address, bytes) ((void)(address), (void)(bytes))
#endif

int kern_impls(kern_impl impl[KERN_MAX_IMPLS]) {
    const kern_impl all[] = {
        {"ref", &cpu_ref_ops, "ref", true},
        {"avx2", &cpu_ref_ops, "avx2", true},
        {"avx512", &cpu_ref_ops, "avx512", true},
    };
    int n = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (cpu_isa_find(all[i].isa) != NULL) {
            impl[n++] = all[i];
        }
    }
    return n;
}

bool kern_fail(kern_report *report, const char *format, ...) {
    if (report->text[0] == '\0') {
        va_list args;
        va_start(args, format);
        vsnprintf(report->text, sizeof report->text, format, args);
        va_end(args);
    }
    return false;
}

bool kern_sanitized(void) {
    const char *san = getenv("LS_SAN");
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    san = "yes";
#endif
    return san != NULL && san[0] != '\0';
}

bool kern_thread_sanitized(void) {
#if defined(__SANITIZE_THREAD__)
    return true;
#else
    return false;
#endif
}

/* ---- Guarded memory ---- */

enum { ZONE = 64, FILL = 0xFF };

typedef struct guard {
    const char *name;
    int rank;
    uint8_t *base; /* zone, payload, zone */
    size_t bytes;
    uint64_t hash; /* of the payload with the live ranges filled */
} guard;

typedef struct live_range {
    void *data;
    size_t bytes;
} live_range;

struct kern_memory {
    const kern_problem *p;
    const kern_run *run;
    guard *guard;
    live_range *live; /* what the op may write */
    int n_guards, n_lives, guard_capacity, live_capacity;
    kern_rank rank[LS_MAX_RANKS];
    ls_step step;
    int row[KERN_MAX_ROWS]; /* the problem's row of each row of the step */
    rank_group *group;
};

static void *grow(void *array, int n, int *capacity, size_t item_bytes) {
    if (n == *capacity) {
        *capacity = *capacity * 2 + 64;
        array = realloc(array, (size_t)*capacity * item_bytes);
    }
    return array;
}

/* Exactly `bytes` between two zones, all filled. */
static void *take(kern_memory *m, const char *name, int rank, size_t bytes) {
    m->guard = grow(m->guard, m->n_guards, &m->guard_capacity, sizeof *m->guard);
    size_t all = (2 * ZONE + bytes + ZONE - 1) / ZONE * ZONE;
    guard g = {.name = name, .rank = rank, .base = aligned_alloc(ZONE, all), .bytes = bytes};
    memset(g.base, FILL, all);
    ASAN_POISON_MEMORY_REGION(g.base, ZONE);
    ASAN_POISON_MEMORY_REGION(g.base + ZONE + bytes, all - ZONE - bytes);
    m->guard[m->n_guards++] = g;
    return g.base + ZONE;
}

/* The op may write these bytes. Called before seal(). */
static void *may_write(kern_memory *m, void *data, size_t offset, size_t bytes) {
    m->live = grow(m->live, m->n_lives, &m->live_capacity, sizeof *m->live);
    m->live[m->n_lives++] = (live_range){(uint8_t *)data + offset, bytes};
    return data;
}

static uint64_t hash_bytes(const uint8_t *data, size_t bytes) {
    uint64_t hash = bytes, word;
    for (; bytes >= sizeof word; bytes -= sizeof word, data += sizeof word) {
        memcpy(&word, data, sizeof word);
        hash = (hash ^ word) * 0x9e3779b97f4a7c15;
        hash ^= hash >> 32;
    }
    for (; bytes > 0; bytes--) {
        hash = (hash ^ *data++) * 0x9e3779b97f4a7c15;
    }
    return hash;
}

/* Remembers all that no op may change. What it may write is still filled here. */
static void seal(kern_memory *m) {
    for (int i = 0; i < m->n_guards; i++) {
        m->guard[i].hash = hash_bytes(m->guard[i].base + ZONE, m->guard[i].bytes);
    }
}

/* Fills what the op may have written, and then finds everything as it was. */
static bool check_guards(kern_memory *m, kern_report *report) {
    bool good = true;
    for (int i = 0; i < m->n_lives; i++) {
        memset(m->live[i].data, FILL, m->live[i].bytes);
    }
    for (int i = 0; i < m->n_guards; i++) {
        guard *g = &m->guard[i];
        uint8_t *end = g->base + ZONE + g->bytes;
        ASAN_UNPOISON_MEMORY_REGION(g->base, ZONE);
        ASAN_UNPOISON_MEMORY_REGION(end, ZONE);
        for (int j = 0; j < ZONE; j++) {
            if (g->base[j] != FILL || end[j] != FILL) {
                good = kern_fail(report, "guard: rank %d wrote %s %s", g->rank,
                                 g->base[j] != FILL ? "before" : "behind", g->name);
            }
        }
        if (hash_bytes(g->base + ZONE, g->bytes) != g->hash) {
            good = kern_fail(report, "guard: rank %d wrote into %s where nothing of its output lies", g->rank, g->name);
        }
    }
    return good;
}

void memory_destroy(kern_memory *m) {
    for (int i = 0; i < m->n_guards; i++) {
        ASAN_UNPOISON_MEMORY_REGION(m->guard[i].base, ZONE);
        ASAN_UNPOISON_MEMORY_REGION(m->guard[i].base + ZONE + m->guard[i].bytes, ZONE);
        free(m->guard[i].base);
    }
    free(m->guard);
    free(m->live);
    free(m);
}

kern_rank *memory_rank(kern_memory *memory, int rank) {
    return &memory->rank[rank];
}

const ls_step *memory_step(const kern_memory *memory) {
    return &memory->step;
}

/* ---- The step ---- */

/* A sequence's page numbers, as many as the span's last row needs. */
static const int32_t *take_pages(kern_memory *m, int seq, int n_positions) {
    int n = (n_positions + LS_PAGE_TOKENS - 1) / LS_PAGE_TOKENS;
    int32_t *page = take(m, "page numbers", -1, (size_t)n * sizeof *page);
    memcpy(page, m->p->page[seq], (size_t)n * sizeof *page);
    return page;
}

static void build_step(kern_memory *m) {
    const kern_problem *p = m->p;
    kern_span whole[KERN_MAX_SEQS];
    for (int s = 0; s < p->n_seqs; s++) {
        whole[s] = (kern_span){s, 0, p->c->seq[s].n_rows};
    }
    const kern_span *span = m->run->span != NULL ? m->run->span : whole;
    const int n_spans = m->run->span != NULL ? m->run->n_spans : p->n_seqs;
    ls_step *step = &m->step;
    ls_step_seq *seq = take(m, "step.seq", -1, (size_t)n_spans * sizeof *seq);
    for (int s = 0; s < n_spans; s++) {
        int n_past = p->c->seq[span[s].seq].n_past + span[s].first;
        seq[s] = (ls_step_seq){step->n_rows, span[s].n, n_past, take_pages(m, span[s].seq, n_past + span[s].n)};
        for (int i = 0; i < span[s].n; i++) {
            m->row[step->n_rows++] = p->seq_first[span[s].seq] + span[s].first + i;
        }
        bool decode = span[s].n == 1 && step->n_pre == 0;
        *(decode ? &step->n_dec : &step->n_pre) += span[s].n;
    }
    const size_t n = (size_t)step->n_rows;
    int32_t *token = take(m, "step.token", -1, n * sizeof *token);
    int32_t *pos = take(m, "step.pos", -1, n * sizeof *pos);
    int32_t *seq_of = take(m, "step.seq_of", -1, n * sizeof *seq_of);
    int32_t *out_row = take(m, "step.out_row", -1, n * sizeof *out_row);
    ls_sample_params *sample = take(m, "step.sample", -1, n * sizeof *sample);
    for (int s = 0; s < n_spans; s++) {
        for (int i = seq[s].first_row; i < seq[s].first_row + seq[s].n_rows; i++) {
            seq_of[i] = s;
        }
    }
    for (int i = 0; i < step->n_rows; i++) {
        token[i] = p->token[m->row[i]];
        pos[i] = p->row_pos[m->row[i]];
        if (p->is_out[m->row[i]]) {
            sample[step->n_out] = p->sample[m->row[i]];
            out_row[step->n_out++] = i;
        }
    }
    step->n_seqs = n_spans;
    step->token = token;
    step->pos = pos;
    step->seq_of = seq_of;
    step->seq = seq;
    step->out_row = out_row;
    step->sample = sample;
    if (p->input_rows != NULL) {
        size_t bytes = (size_t)(p->n_rows * p->c->d_model) * sizeof(float);
        step->input_rows = memcpy(take(m, "input_rows", -1, bytes), p->input_rows, bytes);
    }
}

/* ---- One rank ---- */

static void build_weights(kern_memory *m, int rank) {
    const kern_problem *p = m->p;
    ls_group group = {rank, m->run->n_ranks};
    for (int i = 0; i < KW_COUNT; i++) {
        const kern_tensor *t = &p->weight[i];
        shard_range row = {0, t->rows}, col = {0, t->cols};
        shard_range *outputs = t->is_vector ? &col : &row;
        if (t->rule == SHARD_COLUMN || t->rule == SHARD_VOCAB) {
            *outputs = shard_leaves(outputs->count, group);
        } else if (t->rule == SHARD_ROW) {
            col = shard_leaves(t->cols, group);
        } else if (t->rule == SHARD_KV_HEADS) {
            shard_range heads = shard_kv_heads(p->c->n_kv, group);
            *outputs = (shard_range){heads.first * p->c->d_head, heads.count * p->c->d_head};
        }
        if (t->rows == 0) {
            continue;
        }
        void *data = take(m, "a weight", rank, (size_t)(row.count * col.count) * ls_dtype_bytes(t->format));
        for (int64_t r = 0; r < row.count; r++) {
            for (int64_t c = 0; c < col.count; c++) {
                int64_t from = (row.first + r) * t->cols + col.first + c;
                if (t->format == LS_INT8) {
                    ((int8_t *)data)[r * col.count + c] = t->q[from];
                } else {
                    store_as(t->format, data, r * col.count + c, t->value[from]);
                }
            }
        }
        m->rank[rank].weight[i] =
            (ls_weight){.format = t->format, .data = data, .rows = (int)row.count, .cols = (int)col.count};
        if (t->format == LS_INT8) { /* a rank has the scales of its own leaves */
            const int first = t->rule == SHARD_ROW ? shard_leaf_first(group) : 0;
            const int count = t->rule == SHARD_ROW ? shard_leaf_count(group) : LS_LEAVES;
            float *scale = take(m, "scales", rank, (size_t)(row.count * count) * sizeof *scale);
            for (int64_t r = 0; r < row.count; r++) {
                memcpy(scale + r * count, t->scale + (row.first + r) * LS_LEAVES + first,
                       (size_t)count * sizeof *scale);
            }
            m->rank[rank].weight[i].scale = scale;
        }
    }
}

static int weight_index(const kern_problem *p, kern_weight which) {
    return p->weight[which].rows > 0 ? (int)which : -1;
}

/* The slot that is used; the other must stay as it is. */
enum { SLOT = 1 };

static void build_ops(kern_memory *m, int rank) {
    const kern_problem *p = m->p;
    const kern_case *c = p->c;
    const ls_group group = {rank, m->run->n_ranks};
    const shard_range n = shard_leaves(c->n, group);
    const int leaf_first = shard_leaf_first(group), leaf_count = shard_leaf_count(group);
    const int heads_loc = c->n_heads / group.size, kv_loc = c->n_kv > 0 ? (int)shard_kv_heads(c->n_kv, group).count : 0;
    const float eps = 1e-6F;
    kern_rank *out = &m->rank[rank];
    ls_op op = {.kind = c->kind, .layer = c->d_head <= 64 ? 1 : 0};
    switch (c->kind) {
    case OP_EMBED:
        op.embed = (op_embed){KW_TABLE, (int)n.first, (int)n.count, SLOT};
        break;
    case OP_QKV:
        op.qkv = (op_qkv){.norm = KW_NORM,
                          .q = KW_Q,
                          .k = KW_K,
                          .v = KW_V,
                          .q_bias = weight_index(p, KW_Q_BIAS),
                          .k_bias = weight_index(p, KW_K_BIAS),
                          .v_bias = weight_index(p, KW_V_BIAS),
                          .q_norm = weight_index(p, KW_Q_NORM),
                          .k_norm = weight_index(p, KW_K_NORM),
                          .n_heads_loc = heads_loc,
                          .n_kv_loc = kv_loc,
                          .d_head = c->d_head,
                          .eps = eps};
        break;
    case OP_ATTN:
        op.attn = (op_attn){heads_loc, kv_loc, c->d_head, c->window, 1 / sqrtf((float)c->d_head)};
        break;
    case OP_OUT:
    case OP_FFN_OUT:
        op.row = (op_row){KW_ROW, c->n, leaf_first, leaf_count, SLOT};
        break;
    case OP_EXCHANGE:
        op.exchange = (op_exchange){c->init, weight_index(p, KW_ROW_BIAS), SLOT};
        break;
    case OP_FFN_IN:
        op.ffn_in = (op_ffn_in){
            KW_NORM, KW_GATE, KW_UP, weight_index(p, KW_GATE_BIAS), weight_index(p, KW_UP_BIAS), (int)n.count, eps};
        break;
    case OP_HEAD:
        op.head = (op_head){KW_NORM, KW_HEAD, (int)n.first, (int)n.count, eps};
        break;
    default:
        op.sample = (op_sample){(int)n.first, (int)n.count, c->n, leaf_first, leaf_count};
        break;
    }
    out->op[out->n_ops++] = op;
    if (c->kind == OP_EMBED || c->kind == OP_OUT || c->kind == OP_FFN_OUT) {
        out->op[out->n_ops++] = (ls_op){.kind = OP_EXCHANGE, .layer = op.layer, .exchange = {true, -1, SLOT}};
    }
}

/* A buffer of m_max rows: `used` of them the op may write, or hold columns [first, first + cols) of the problem's input. */
static float *take_rows(kern_memory *m, int rank, ls_buf buf, const char *name, int64_t cols, int n_writable) {
    const ls_bind *bind = &m->rank[rank].bind;
    float *data = take(m, name, rank, (size_t)(bind->m_max * cols) * sizeof *data);
    m->rank[rank].bind.buf[buf] = may_write(m, data, 0, (size_t)(n_writable * cols) * sizeof *data);
    return data;
}

static void copy_input(const kern_memory *m, float *to, int64_t stride, int64_t first, int64_t cols) {
    for (int i = 0; i < m->step.n_rows; i++) {
        memcpy(to + i * stride, m->p->in + (int64_t)m->row[i] * m->p->in_cols + first, (size_t)cols * sizeof *to);
    }
}

/* Part of rank `rank` for an exchange: the node over its leaves, added up the fixed tree. */
static void fill_part(const kern_memory *m, int rank, float *part) {
    const kern_problem *p = m->p;
    const int d = p->c->d_model, count = LS_LEAVES / m->run->n_ranks;
    for (int i = 0; i < m->step.n_rows; i++) {
        for (int j = 0; j < d; j++) {
            float node[LS_LEAVES] = {0};
            for (int leaf = 0; leaf < count; leaf++) {
                node[leaf] = p->leaf[((int64_t)(rank * count + leaf) * p->n_rows + m->row[i]) * d + j];
            }
            for (int n = count; n > 1; n /= 2) {
                for (int k = 0; k < n / 2; k++) {
                    node[k] = node[2 * k] + node[2 * k + 1];
                }
            }
            part[i * d + j] = node[0];
        }
    }
}

static void build_part(kern_memory *m, int rank, bool input) {
    ls_bind *bind = &m->rank[rank].bind;
    const size_t slot_bytes = (size_t)(bind->m_max * bind->d_model) * sizeof(float);
    float *part = take(m, "BUF_PART", rank, 2 * slot_bytes);
    bind->buf[BUF_PART] = part;
    if (input) {
        fill_part(m, rank, part + (int64_t)SLOT * bind->m_max * bind->d_model);
    } else {
        may_write(m, part, SLOT * slot_bytes, (size_t)(m->step.n_rows * bind->d_model) * sizeof *part);
    }
}

/* Index in the cache of the first element of (sequence, position, head of this rank). */
static int64_t kv_element(const kern_memory *m, const kern_rank *rank, int seq, int pos, int64_t head) {
    const kern_problem *p = m->p;
    const int64_t kv_loc = shard_kv_heads(p->c->n_kv, rank->bind.group).count;
    const int64_t page = rank->op[0].layer * (int64_t)p->n_pages + p->page[seq][pos / LS_PAGE_TOKENS];
    return ((page * kv_loc + head) * LS_PAGE_TOKENS + pos % LS_PAGE_TOKENS) * p->c->d_head;
}

/* attn: the positions that the step's rows attend to, and no other. */
static void fill_cache(kern_memory *m, kern_rank *rank) {
    const kern_problem *p = m->p;
    const kern_case *c = p->c;
    const shard_range heads = shard_kv_heads(c->n_kv, rank->bind.group);
    for (int s = 0; s < m->step.n_seqs; s++) {
        const ls_step_seq *seq = &m->step.seq[s];
        int id = p->row_seq[m->row[seq->first_row]];
        int lo = c->window > 0 && seq->n_past + 1 > c->window ? seq->n_past + 1 - c->window : 0;
        for (int pos = lo; pos < seq->n_past + seq->n_rows; pos++) {
            for (int64_t head = 0; head < heads.count; head++) {
                int64_t to = kv_element(m, rank, id, pos, head);
                int64_t from = ((int64_t)pos * c->n_kv + heads.first + head) * c->d_head;
                for (int i = 0; i < c->d_head; i++) {
                    store_as(c->kv_dtype, rank->bind.k_cache, to + i, p->k[id][from + i]);
                    store_as(c->kv_dtype, rank->bind.v_cache, to + i, p->v[id][from + i]);
                }
            }
        }
    }
}

static void build_cache(kern_memory *m, kern_rank *rank) {
    const kern_case *c = m->p->c;
    const int64_t kv_loc = shard_kv_heads(c->n_kv, rank->bind.group).count;
    const size_t element = ls_dtype_bytes(c->kv_dtype);
    const size_t bytes =
        (size_t)((rank->op[0].layer + 1) * m->p->n_pages * kv_loc * LS_PAGE_TOKENS * c->d_head) * element;
    rank->bind.k_cache = take(m, "the K cache", rank->bind.group.rank, bytes);
    rank->bind.v_cache = take(m, "the V cache", rank->bind.group.rank, bytes);
    rank->bind.n_pages = m->p->n_pages;
    if (c->kind == OP_ATTN) {
        fill_cache(m, rank);
        return;
    }
    for (int i = 0; i < m->step.n_rows; i++) {
        for (int64_t head = 0; head < kv_loc; head++) {
            size_t at = (size_t)kv_element(m, rank, m->p->row_seq[m->row[i]], m->p->row_pos[m->row[i]], head) * element;
            may_write(m, rank->bind.k_cache, at, (size_t)c->d_head * element);
            may_write(m, rank->bind.v_cache, at, (size_t)c->d_head * element);
        }
    }
}

/* Only positions of the step's rows have angles. */
static void build_rope(kern_memory *m, kern_rank *rank) {
    const int d = m->p->c->d_head;
    int n = 0;
    for (int i = 0; i < m->step.n_rows; i++) {
        n = m->step.pos[i] >= n ? m->step.pos[i] + 1 : n;
    }
    float *rope = take(m, "the RoPE table", rank->bind.group.rank, (size_t)(n * d) * sizeof *rope);
    for (int i = 0; i < m->step.n_rows; i++) {
        int64_t at = (int64_t)m->step.pos[i] * d;
        memcpy(rope + at, m->p->rope + at, (size_t)d * sizeof *rope);
    }
    rank->bind.rope = rope;
}

static void build_attention(kern_memory *m, int r) {
    const kern_case *c = m->p->c;
    kern_rank *rank = &m->rank[r];
    const int q_loc = c->n_heads / m->run->n_ranks * c->d_head;
    const int stride = q_loc + 2 * (int)shard_kv_heads(c->n_kv, rank->bind.group).count * c->d_head;
    build_cache(m, rank);
    float *qkv = take_rows(m, r, BUF_QKV, "BUF_QKV", stride, c->kind == OP_QKV ? m->step.n_rows : 0);
    if (c->kind == OP_QKV) {
        build_rope(m, rank);
    } else {
        copy_input(m, qkv, stride, (int64_t)r * q_loc, q_loc);
        take_rows(m, r, BUF_ATT, "BUF_ATT", q_loc, m->step.n_rows);
    }
}

static void build_logits(kern_memory *m, int r) {
    const shard_range vocab = shard_leaves(m->p->c->n, m->rank[r].bind.group);
    const size_t n_out = (size_t)m->step.n_out;
    const size_t bytes = n_out * (size_t)vocab.count * sizeof(float);
    float *logits = take(m, "BUF_LOGITS", r, bytes + (size_t)vocab.count * sizeof(float)); /* one unused row */
    m->rank[r].bind.buf[BUF_LOGITS] = logits;
    if (m->p->c->kind == OP_HEAD) {
        may_write(m, logits, 0, bytes);
        return;
    }
    copy_input(m, logits, vocab.count, vocab.first, vocab.count);
    ls_sample_part *part = take(m, "BUF_SAMPLE", r, (n_out + 1) * sizeof *part);
    m->rank[r].bind.buf[BUF_SAMPLE] = may_write(m, part, 0, n_out * sizeof *part);
    const size_t n_threads = (size_t)m->run->n_threads;
    float *edited = take(m, "BUF_EDITED", r, (n_threads + 1) * (size_t)vocab.count * sizeof *edited);
    m->rank[r].bind.buf[BUF_EDITED] = may_write(m, edited, 0, n_threads * (size_t)vocab.count * sizeof *edited);
    ls_sample_part *slice = take(m, "BUF_SLICE", r, (n_threads + 1) * sizeof *slice);
    m->rank[r].bind.buf[BUF_SLICE] = may_write(m, slice, 0, n_threads * sizeof *slice);
}

/* w8a8: what a matmul's input is quantised into. */
static void build_quantized(kern_memory *m, int r) {
    const kern_case *c = m->p->c;
    const bool row = c->kind == OP_OUT || c->kind == OP_FFN_OUT;
    kern_rank *rank = &m->rank[r];
    if (c->quantization != LS_QUANTIZATION_W8A8 || (!row && rank->bind.buf[BUF_X] == NULL)) {
        return;
    }
    size_t row_bytes = xq_row_bytes(row ? shard_leaves(c->n, rank->bind.group).count : c->d_model);
    void *xq = take(m, "BUF_XQ", r, (size_t)rank->bind.m_max * row_bytes);
    rank->bind.buf[BUF_XQ] = may_write(m, xq, 0, (size_t)m->step.n_rows * row_bytes);
}

static void build_rank(kern_memory *m, int r) {
    const kern_problem *p = m->p;
    const kern_case *c = p->c;
    const int n_rows = m->step.n_rows;
    kern_rank *rank = &m->rank[r];
    ls_bind *bind = &rank->bind;
    *bind = (ls_bind){.group = {r, m->run->n_ranks},
                      .dtype = c->dtype,
                      .kv_dtype = c->kv_dtype,
                      .d_model = c->d_model,
                      .m_max = n_rows + 2,
                      .weight = rank->weight,
                      .isa = cpu_isa_find(m->run->impl->isa)};
    build_weights(m, r);
    build_ops(m, r);
    bind->fault = take(m, "the faults", r, (size_t)bind->m_max * sizeof *bind->fault);
    may_write(m, bind->fault, 0, (size_t)n_rows * sizeof *bind->fault);
    if (c->kind == OP_QKV || c->kind == OP_FFN_IN || c->kind == OP_HEAD) {
        float *h = take_rows(m, r, BUF_H, "BUF_H", c->d_model, 0);
        copy_input(m, h, c->d_model, 0, c->d_model);
        take_rows(m, r, BUF_X, "BUF_X", c->d_model, n_rows);
    }
    if (c->kind == OP_QKV || c->kind == OP_ATTN) {
        build_attention(m, r);
    } else if (c->kind == OP_OUT || c->kind == OP_FFN_OUT) {
        shard_range cols = shard_leaves(c->n, bind->group);
        float *x = take_rows(m, r, c->kind == OP_OUT ? BUF_ATT : BUF_ACT, "BUF_ATT or BUF_ACT", cols.count, 0);
        copy_input(m, x, cols.count, cols.first, cols.count);
    } else if (c->kind == OP_FFN_IN) {
        take_rows(m, r, BUF_ACT, "BUF_ACT", shard_leaves(c->n, bind->group).count, n_rows);
    } else if (c->kind == OP_HEAD || c->kind == OP_SAMPLE) {
        build_logits(m, r);
    }
    build_quantized(m, r);
    if (c->kind == OP_EXCHANGE || rank->n_ops == 2) {
        build_part(m, r, c->kind == OP_EXCHANGE);
        take_rows(m, r, BUF_H, "BUF_H", c->d_model, n_rows);
    }
}

kern_memory *memory_create(const kern_problem *p, const kern_run *run) {
    kern_memory *m = calloc(1, sizeof *m);
    m->p = p;
    m->run = run;
    m->group = kern_group(run->n_ranks, run->n_threads);
    build_step(m);
    for (int r = 0; r < run->n_ranks; r++) {
        build_rank(m, r);
    }
    seal(m);
    for (int r = 0; r < run->n_ranks; r++) {
        ls_bind *bind = &m->rank[r].bind;
        for (int other = 0; other < run->n_ranks; other++) {
            bind->peer_part[other] = m->rank[other].bind.buf[BUF_PART];
        }
        bind->n_parts = run->n_ranks;
        for (int i = 0; i < m->step.n_rows; i++) {
            bool failed = run->failed_row != NULL && *run->failed_row == m->row[i];
            atomic_init(&bind->fault[i], failed ? 1 + KERN_FAILED_BEFORE : 0);
        }
        if (p->c->kind == OP_EXCHANGE && !p->c->init) {
            copy_input(m, bind->buf[BUF_H], bind->d_model, 0, bind->d_model);
        }
    }
    return m;
}

/* ---- Running ---- */

static rank_group *groups[LS_MAX_RANKS + 1][4];

rank_group *kern_group(int n_ranks, int n_threads) {
    rank_group **group = &groups[n_ranks][n_threads];
    ls_error error;
    if (*group == NULL && rank_group_create(group, n_ranks, n_threads, &error) != LS_OK) {
        fprintf(stderr, "%s\n", error.text);
        abort();
    }
    return *group;
}

void kern_groups_destroy(void) {
    for (size_t i = 0; i < sizeof groups / sizeof **groups; i++) {
        rank_group_destroy(&groups[0][0] + i);
    }
}

static void run_rank(void *arg, int rank, const ls_team *team) {
    kern_memory *m = arg;
    kern_rank *self = &m->rank[rank];
    for (int i = 0; i < self->n_ops; i++) {
        if (self->op[i].kind == OP_EXCHANGE) {
            barrier_wait(rank_group_barrier(m->group));
        }
        m->run->impl->table->fn[self->op[i].kind](&self->op[i], KERN_OP_INDEX + i, &self->bind, &m->step, team);
        team_wait(team);
    }
}

/* ---- Gathering the outputs ---- */

static kern_output *add_output(kern_result *result, const char *name, int rows, int64_t cols, ls_dtype rounded,
                               ls_dtype tolerance) {
    kern_output *out = &result->out[result->n_outputs++];
    float *value = malloc((size_t)(rows * cols + 1) * sizeof *value);
    *out = (kern_output){name, rows, (int)cols, value, false, rounded, tolerance};
    return out;
}

/* Columns [first, first + count) of all rows, from a rank's buffer with `stride` columns. */
static void put_columns(kern_output *out, int64_t first, int64_t count, const float *from, int64_t stride) {
    for (int64_t m = 0; m < out->rows; m++) {
        memcpy(out->value + m * out->cols + first, from + m * stride, (size_t)count * sizeof *from);
    }
}

static bool gather_stream(const kern_memory *m, kern_result *result, kern_report *report) {
    const int n_rows = m->step.n_rows, d = m->p->c->d_model, n_ranks = m->run->n_ranks;
    const size_t n = (size_t)(n_rows * d);
    kern_output *h = add_output(result, "h", n_rows, d, LS_F32, m->p->c->dtype);
    memcpy(h->value, m->rank[0].bind.buf[BUF_H], n * sizeof *h->value);
    for (int r = 1; r < n_ranks; r++) {
        if (memcmp(h->value, m->rank[r].bind.buf[BUF_H], n * sizeof *h->value) != 0) {
            return kern_fail(report, "ranks: h of rank %d is not h of rank 0", r);
        }
    }
    kern_output *part = add_output(result, "part", n_ranks * n_rows, d, LS_F32, LS_F32);
    part->per_rank = true;
    for (int r = 0; r < n_ranks; r++) {
        const float *from = m->rank[r].bind.buf[BUF_PART];
        memcpy(part->value + (size_t)r * n, from + (int64_t)SLOT * m->rank[r].bind.m_max * d, n * sizeof *from);
    }
    return true;
}

/* Of an op that norms: w8a8 rounds its x to steps of 1 / 127, and a sum in f32 now and then tips one over. */
static ls_dtype normed_tolerance(const kern_case *c) {
    bool normed = c->kind == OP_QKV || c->kind == OP_FFN_IN || c->kind == OP_HEAD;
    return normed && c->quantization == LS_QUANTIZATION_W8A8 ? LS_INT8 : c->dtype;
}

static ls_dtype coarser(ls_dtype a, ls_dtype b) {
    if (a == LS_INT8 || b == LS_INT8) {
        return LS_INT8;
    }
    return a == LS_BF16 || b == LS_BF16 ? LS_BF16 : a == LS_F16 || b == LS_F16 ? LS_F16 : LS_F32;
}

/* K or V of the step's rows; replicas on several ranks must be the same. */
static bool gather_cache(const kern_memory *m, kern_result *result, bool is_k, kern_report *report) {
    const kern_case *c = m->p->c;
    kern_output *out = add_output(result, is_k ? "K" : "V", m->step.n_rows, c->n_kv * c->d_head, c->kv_dtype,
                                  coarser(normed_tolerance(c), c->kv_dtype));
    memset(out->value, FILL, (size_t)(out->rows * out->cols) * sizeof *out->value);
    for (int r = 0; r < m->run->n_ranks; r++) {
        const kern_rank *rank = &m->rank[r];
        const shard_range heads = shard_kv_heads(c->n_kv, rank->bind.group);
        for (int i = 0; i < out->rows; i++) {
            for (int64_t j = 0; j < heads.count * c->d_head; j++) {
                int64_t at = kv_element(m, rank, m->p->row_seq[m->row[i]], m->p->row_pos[m->row[i]], j / c->d_head);
                float value = load_as(c->kv_dtype, is_k ? rank->bind.k_cache : rank->bind.v_cache, at + j % c->d_head);
                float *to = &out->value[(int64_t)i * out->cols + heads.first * c->d_head + j];
                bool is_first = m->run->n_ranks <= c->n_kv || r % (m->run->n_ranks / c->n_kv) == 0;
                if (!is_first && f32_bits(value) != f32_bits(*to)) {
                    return kern_fail(report, "ranks: %s of row %d is not the same on rank %d", out->name, i, r);
                }
                *to = value;
            }
        }
    }
    return true;
}

/* The best of the ranks' lists, in order, at most `room`. */
static int32_t merge_lists(const ls_candidate *const *list, const int32_t *n_list, int n_ranks, int room, float *out) {
    int next[LS_MAX_RANKS] = {0};
    int32_t n = 0;
    for (; n < room; n++) {
        int best = -1;
        for (int r = 0; r < n_ranks; r++) {
            const ls_candidate *a = &list[r][next[r]], *b = best < 0 ? NULL : &list[best][next[best]];
            if (next[r] < n_list[r] && (b == NULL || a->z > b->z || (a->z == b->z && a->id < b->id))) {
                best = r;
            }
        }
        if (best < 0) {
            return n;
        }
        memcpy(out + 2 * n, &list[best][next[best]++], sizeof(ls_candidate));
    }
    return n;
}

/* What oracle.c's check_offer reads: the ranks' offers merged into the whole row's. */
static bool gather_sample(const kern_memory *m, kern_result *result, kern_report *report) {
    enum { WORDS = sizeof(ls_sample_part) / sizeof(float), HEAD_WORDS = 6, RAW = HEAD_WORDS + 2 * LS_SAMPLE_BEST };
    const int n_out = m->step.n_out, n_ranks = m->run->n_ranks;
    kern_output *all = add_output(result, "offer", n_out, RAW + 3 + 2 * LS_SAMPLE_TOP, LS_F32, LS_F32);
    kern_output *raw = add_output(result, "ls_sample_part", n_ranks * n_out, WORDS, LS_F32, LS_F32);
    raw->per_rank = true;
    memset(all->value, 0, (size_t)(all->rows * all->cols) * sizeof *all->value);
    for (int i = 0; i < n_out; i++) {
        float *to = all->value + (int64_t)i * all->cols;
        softmax_node node[LS_MAX_RANKS], raw_node[LS_MAX_RANKS];
        const ls_candidate *best[LS_MAX_RANKS], *top[LS_MAX_RANKS];
        int32_t n_best[LS_MAX_RANKS], n_top[LS_MAX_RANKS];
        double drawn_value = -INFINITY;
        int32_t drawn = -1;
        for (int r = 0; r < n_ranks; r++) {
            const ls_sample_part *part = (const ls_sample_part *)m->rank[r].bind.buf[BUF_SAMPLE] + i;
            ls_sample_part copy = *part; /* entries past the counts mean nothing */
            if (part->n_best < 0 || part->n_best > LS_SAMPLE_BEST || part->n_top < 0 || part->n_top > LS_SAMPLE_TOP) {
                return kern_fail(report, "sample: rank %d offers %d candidates, %d at the top", r, part->n_best,
                                 part->n_top);
            }
            memset(copy.best + part->n_best, 0, (size_t)(LS_SAMPLE_BEST - part->n_best) * sizeof *copy.best);
            memset(copy.top + part->n_top, 0, (size_t)(LS_SAMPLE_TOP - part->n_top) * sizeof *copy.top);
            memcpy(raw->value + (int64_t)(r * n_out + i) * WORDS, &copy, sizeof copy);
            best[r] = part->best;
            n_best[r] = part->n_best;
            top[r] = part->top;
            n_top[r] = part->n_top;
            node[r] = (softmax_node){part->max, part->sum};
            raw_node[r] = (softmax_node){part->raw_max, part->raw_sum};
            if (part->drawn_value > drawn_value) {
                drawn_value = part->drawn_value;
                drawn = part->drawn_id;
            }
        }
        const ls_sample_params *how = &m->step.sample[i];
        const int room = how->temperature == 0                           ? 1
                         : how->top_k > 0 && how->top_k < LS_SAMPLE_BEST ? how->top_k
                                                                         : LS_SAMPLE_BEST;
        int32_t n = merge_lists(best, n_best, n_ranks, room, to + HEAD_WORDS);
        int32_t n_first = merge_lists(top, n_top, n_ranks, how->n_top, to + RAW + 3);
        softmax_node whole = softmax_tree(node, n_ranks), whole_raw = softmax_tree(raw_node, n_ranks);
        memcpy(to, &whole, sizeof whole);
        memcpy(to + 2, &drawn_value, sizeof drawn_value);
        memcpy(to + 4, &drawn, sizeof drawn);
        memcpy(to + 5, &n, sizeof n);
        memcpy(to + RAW, &whole_raw, sizeof whole_raw);
        memcpy(to + RAW + 2, &n_first, sizeof n_first);
    }
    return true;
}

/* Outputs whose columns are split over the ranks. */
static void gather_columns(const kern_memory *m, kern_result *result) {
    const kern_case *c = m->p->c;
    const bool heads = c->kind == OP_QKV || c->kind == OP_ATTN;
    const ls_buf buf = c->kind == OP_QKV    ? BUF_QKV
                       : c->kind == OP_ATTN ? BUF_ATT
                       : c->kind == OP_HEAD ? BUF_LOGITS
                                            : BUF_ACT;
    const char *name = c->kind == OP_QKV ? "q" : c->kind == OP_ATTN ? "att" : c->kind == OP_HEAD ? "logits" : "act";
    kern_output *out = add_output(result, name, result->n_rows, heads ? c->n_heads * c->d_head : c->n,
                                  c->kind == OP_HEAD ? LS_F32 : c->dtype, normed_tolerance(c));
    for (int r = 0; r < m->run->n_ranks; r++) {
        const ls_bind *bind = &m->rank[r].bind;
        shard_range cols = shard_leaves(c->n, bind->group);
        if (heads) {
            cols.count = out->cols / m->run->n_ranks;
            cols.first = r * cols.count;
        }
        int64_t kv_cols = c->kind == OP_QKV ? 2 * shard_kv_heads(c->n_kv, bind->group).count * c->d_head : 0;
        put_columns(out, cols.first, cols.count, bind->buf[buf], cols.count + kv_cols);
    }
}

static bool gather(const kern_memory *m, kern_result *result, kern_report *report) {
    const kern_case *c = m->p->c;
    const bool few = c->kind == OP_HEAD || c->kind == OP_SAMPLE;
    result->n_ranks = m->run->n_ranks;
    result->n_rows = few ? m->step.n_out : m->step.n_rows;
    for (int i = 0; i < result->n_rows; i++) {
        result->row[i] = m->row[few ? m->step.out_row[i] : i];
    }
    for (int r = 0; r < result->n_ranks; r++) {
        result->has_vocab[r] = shard_leaves(c->n, m->rank[r].bind.group).count > 0;
        for (int i = 0; i < m->step.n_rows; i++) {
            result->fault[r][m->row[i]] = atomic_load(&m->rank[r].bind.fault[i]);
        }
    }
    switch (c->kind) {
    case OP_SAMPLE:
        return gather_sample(m, result, report);
    case OP_QKV:
        gather_columns(m, result);
        return gather_cache(m, result, true, report) && gather_cache(m, result, false, report);
    case OP_ATTN:
    case OP_FFN_IN:
    case OP_HEAD:
        gather_columns(m, result);
        return true;
    default:
        return gather_stream(m, result, report);
    }
}

bool kern_execute(const kern_problem *p, const kern_run *run, kern_result *out, kern_report *report) {
    kern_memory *m = memory_create(p, run);
    *out = (kern_result){0};
    rank_group_run(m->group, run_rank, m);
    bool good = gather(m, out, report);
    good &= check_guards(m, report);
    memory_destroy(m);
    return good;
}

void result_deinit(kern_result *result) {
    for (int i = 0; i < result->n_outputs; i++) {
        free(result->out[i].value);
    }
    *result = (kern_result){0};
}
