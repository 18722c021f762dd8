/* See persist_model.h. */
#include "persist_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/numeric.h"

enum { BLOCK = 1048573 }; /* random numbers; a prime, so that rows differ */

static void must(ls_status st, const ls_error *err) {
    if (st < 0) {
        printf("FAILED %s\n", err->text);
        exit(1);
    }
}

static void *need(void *p) {
    if (p == NULL) {
        printf("FAILED out of memory\n");
        exit(1);
    }
    return p;
}

static uint32_t hash_of(const char *name) {
    uint32_t h = 2166136261u;
    for (; *name != '\0'; name++) {
        h = (h ^ (uint8_t)*name) * 16777619u;
    }
    return h;
}

/* ---- Weights ---- */

/* Uniform, mean 0, deviation 1; and any int8. */
typedef struct noise {
    float value[BLOCK];
    int8_t byte[BLOCK];
} noise;

static noise *make_noise(void) {
    noise *n = need(malloc(sizeof *n));
    uint64_t state = 7;
    for (int i = 0; i < BLOCK; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        n->value[i] = ((float)(state >> 40) * 0x1p-24F - 0.5F) * 3.4641016F;
        n->byte[i] = (int8_t)((int)(state >> 33 & 0xff) % 255 - 127);
    }
    return n;
}

/* Deviation and mean by what the tensor is. */
static float scale_of(const weight_slot *slot, float *mean) {
    *mean = 0;
    if (slot->n_dims == 2) {
        return strstr(slot->name, "embed") != NULL ? 1 : 2 / sqrtf((float)slot->cols);
    }
    const bool is_norm = strstr(slot->name, "norm") != NULL;
    *mean = is_norm ? 1 : 0;
    return is_norm ? 0.3F : 0.5F;
}

/* n elements of a tensor from its element `first` on. */
static void put_elements(const noise *from, ls_dtype format, float mean, float deviation, uint64_t first, int64_t n,
                         void *to) {
    const size_t element = ls_dtype_bytes(format);
    size_t at = first % BLOCK;
    for (int64_t i = 0; i < n; i++, at = at + 1 == BLOCK ? 0 : at + 1) {
        if (format == LS_INT8) {
            ((int8_t *)to)[i] = from->byte[at];
        } else {
            store_as(format, (uint8_t *)to + (size_t)i * element, 0, mean + deviation * from->value[at]);
        }
    }
}

/* In pieces, since the device takes long ones faster. */
static void fill_weight(model *m, const noise *from, const weight_slot *slot, ls_weight *w) {
    enum { PIECE = 4 << 20 };
    float mean, deviation = scale_of(slot, &mean);
    const uint32_t start = hash_of(slot->name);
    const int64_t rows = slot->row.count, cols = slot->col.count;
    const size_t element = ls_dtype_bytes(slot->format), bytes = (size_t)(rows * cols) * element;
    uint8_t *to = device_take(m->dev, bytes), *piece = need(malloc(PIECE + (size_t)cols * element));
    size_t n = 0, done = 0;
    for (int64_t r = 0; r < rows; r++) {
        put_elements(from, slot->format, mean, deviation,
                     start + (uint64_t)((slot->row.first + r) * slot->cols + slot->col.first), cols, piece + n);
        n += (size_t)cols * element;
        if (n >= PIECE || r + 1 == rows) {
            device_write(m->dev, to + done, piece, n);
            done += n;
            n = 0;
        }
    }
    free(piece);
    *w = (ls_weight){.format = slot->format, .data = to, .rows = (int)rows, .cols = (int)cols};
    if (slot->n_leaves > 0) { /* by the row and the leaf of the whole tensor */
        const int64_t first_leaf = slot->rule == SHARD_ROW ? shard_leaf_first(m->program->group) : 0;
        float *scale = need(malloc((size_t)(rows * slot->n_leaves) * sizeof *scale));
        for (int64_t r = 0; r < rows; r++) {
            put_elements(from, LS_F32, deviation / 73, deviation / 300,
                         start + 1 + (uint64_t)((slot->row.first + r) * LS_LEAVES + first_leaf), slot->n_leaves,
                         scale + r * slot->n_leaves);
        }
        w->scale = device_copy(m->dev, scale, (size_t)(rows * slot->n_leaves) * sizeof *scale);
        free(scale);
    }
}

static size_t padded(int64_t bytes) {
    return ((size_t)bytes + 255) / 256 * 256;
}

/* All matrices of all layers begin with the same numbers, 64 MiB of them; vectors are ones, scales small. */
static void fill_fast(model *m, const noise *from) {
    enum { PART = 64 << 20 };
    const ls_program *program = m->program;
    const ls_dtype format = program->weight[program->op[0].embed.table].format;
    int64_t most_scales = 0;
    for (int i = 0; i < program->n_weights; i++) {
        const weight_slot *slot = &program->weight[i];
        m->block_bytes += slot->n_dims == 2 ? padded(slot_bytes(slot) - slot_scale_bytes(slot)) : 0;
        most_scales = slot_scale_bytes(slot) > most_scales ? slot_scale_bytes(slot) : most_scales;
    }
    m->block = device_take(m->dev, m->block_bytes);
    const size_t n = m->block_bytes < PART ? m->block_bytes : PART;
    uint8_t *part = need(malloc(PART));
    put_elements(from, format, 0, 0.03F, 0, (int64_t)(n / ls_dtype_bytes(format)), part);
    device_write(m->dev, m->block, part, n);
    device_repeat(m->dev, m->block, n, m->block_bytes);
    free(part);
    const int64_t n_ones =
        most_scales / 4 > m->spec->d_ffn + m->spec->d_model ? most_scales / 4 : m->spec->d_ffn + m->spec->d_model;
    float *ones = need(malloc((size_t)n_ones * sizeof *ones));
    for (int64_t i = 0; i < n_ones; i++) {
        ones[i] = format == LS_INT8 ? 0.0005F : 1;
    }
    const float *on_device = device_copy(m->dev, ones, (size_t)n_ones * sizeof *ones);
    free(ones);
    uint8_t *next = m->block;
    for (int i = 0; i < program->n_weights; i++) {
        const weight_slot *slot = &program->weight[i];
        const bool is_matrix = slot->n_dims == 2;
        m->weight[i] = (ls_weight){.format = slot->format,
                                   .data = is_matrix ? (const void *)next : on_device,
                                   .scale = slot->n_leaves > 0 ? on_device : NULL,
                                   .rows = (int)slot->row.count,
                                   .cols = (int)slot->col.count};
        next += is_matrix ? padded(slot_bytes(slot) - slot_scale_bytes(slot)) : 0;
    }
}

static float *make_rope(model *m) {
    const int half = m->spec->d_head / 2;
    float *inv_freq = need(malloc((size_t)half * sizeof *inv_freq)), factor;
    float *rope = need(malloc((size_t)m->max_len * (size_t)half * 2 * sizeof *rope));
    rope_frequencies(&m->spec->rope, m->spec->d_head, m->spec->max_position_tokens, inv_freq, &factor);
    for (int pos = 0; pos < m->max_len; pos++) {
        for (int i = 0; i < half; i++) {
            const float angle = (float)pos * inv_freq[i];
            rope[((size_t)pos * (size_t)half + (size_t)i) * 2] = cosf(angle) * factor;
            rope[((size_t)pos * (size_t)half + (size_t)i) * 2 + 1] = sinf(angle) * factor;
        }
    }
    float *on_device = device_copy(m->dev, rope, (size_t)m->max_len * (size_t)half * 2 * sizeof *rope);
    free(rope);
    free(inv_freq);
    return on_device;
}

void model_open(model *m, device *dev, const ls_spec *spec, ls_group group, ls_dtype dtype, bool int8, int rows,
                int max_len, bool fast) {
    ls_error err = {0};
    *m = (model){.dev = dev, .spec = spec, .rows = rows, .max_len = max_len};
    m->n_pages = rows * ((max_len + LS_PAGE_TOKENS - 1) / LS_PAGE_TOKENS);
    must(program_build(&m->program, spec, group, dtype, int8 ? LS_QUANTIZATION_W8A16 : LS_QUANTIZATION_NONE, &err),
         &err);
    m->weight = need(calloc((size_t)m->program->n_weights, sizeof *m->weight));
    noise *from = make_noise();
    if (fast) {
        fill_fast(m, from);
    }
    for (int i = 0; i < m->program->n_weights && !fast; i++) {
        fill_weight(m, from, &m->program->weight[i], &m->weight[i]);
    }
    free(from);
    m->rope = make_rope(m);
}

void model_close(model *m) {
    program_destroy(&m->program);
    free(m->weight);
}

/* ---- Sides ---- */

static const ls_op *find_op(const ls_program *program, ls_op_kind kind) {
    const ls_op *op = program->op;
    while (op->kind != kind) {
        op++;
    }
    return op;
}

void side_open(side *s, model *m) {
    const int rows = m->rows;
    const ls_program *program = m->program;
    const ls_spec *spec = m->spec;
    const op_attn *attn = &find_op(program, OP_ATTN)->attn;
    const int64_t d = spec->d_model, q = (int64_t)attn->n_heads_loc * attn->d_head,
                  kv = (int64_t)attn->n_kv_loc * attn->d_head;
    const int64_t columns[BUF_COUNT] = {[BUF_H] = d,
                                        [BUF_X] = d,
                                        [BUF_QKV] = q + 2 * kv,
                                        [BUF_ATT] = q,
                                        [BUF_ACT] = find_op(program, OP_FFN_IN)->ffn_in.d_ffn_loc,
                                        [BUF_PART] = 2 * CUDA_NODES * d,
                                        [BUF_LOGITS] = find_op(program, OP_HEAD)->head.vocab_count};
    ls_bind bind = {.group = program->group,
                    .dtype = program->dtype,
                    .kv_dtype = program->dtype,
                    .d_model = (int)d,
                    .m_max = rows,
                    .weight = m->weight,
                    .rope = m->rope,
                    .n_pages = m->n_pages};
    s->m = m;
    for (int i = 0; i < BUF_COUNT; i++) {
        bind.buf[i] = columns[i] > 0 ? device_take(m->dev, (size_t)(rows * columns[i]) * sizeof(float)) : NULL;
    }
    bind.fault = device_take(m->dev, (size_t)rows * sizeof(int32_t));
    s->cache_bytes =
        (size_t)spec->n_layers * (size_t)m->n_pages * LS_PAGE_TOKENS * (size_t)kv * ls_dtype_bytes(program->dtype);
    bind.k_cache = device_take(m->dev, s->cache_bytes);
    bind.v_cache = device_take(m->dev, s->cache_bytes);
    s->rank = *device_rank(m->dev, &bind, decode_workspace(find_op(program, OP_ATTN), rows, m->max_len, m->n_pages));
}

void side_plan(side *s, const persist_options *how) {
    ls_error err = {0};
    const ls_program *program = s->m->program;
    must(persist_plan_build(&s->plan, &s->rank, program->op, program->n_ops, how, 0, &err), &err);
    s->room = device_take(s->m->dev, s->plan.room_bytes);
    must(
        persist_plan_build(&s->plan, &s->rank, program->op, program->n_ops, how, (CUdeviceptr)(uintptr_t)s->room, &err),
        &err);
    must(cuda_rank_kernel(&s->rank, s->plan.kernel, &s->fn, &err), &err);
    must(persist_prepare(&s->rank, &s->plan, s->fn, &err), &err);
}

void side_upload(side *s, const model_step *step) {
    static uint8_t bytes[MODEL_STEP_BYTES];
    const int n = step->n, rows = s->m->rows, pages = s->m->n_pages / rows;
    memset(bytes, 0, sizeof bytes);
    cuda_step *to = (cuda_step *)bytes;
    *to = (cuda_step){.n_rows = n, .n_dec = n, .n_seqs = n, .n_out = n};
    size_t at = (sizeof *to + 15) / 16 * 16;
#define PUT(field, type, count)                                                                                        \
    type *field = (type *)(bytes + at);                                                                                \
    to->field = (int64_t)at;                                                                                           \
    at += ((size_t)(count) * sizeof(type) + 15) / 16 * 16;
    PUT(token, int32_t, n)
    PUT(pos, int32_t, n)
    PUT(seq_of, int32_t, n)
    PUT(out_row, int32_t, n)
    PUT(seq, cuda_seq, n)
    PUT(page, int32_t, n * pages)
    PUT(draw, cuda_draw, n)
#undef PUT
    if (at > sizeof bytes) {
        printf("FAILED a step of %zu bytes\n", at);
        exit(1);
    }
    for (int i = 0; i < n; i++) {
        token[i] = step->token[i];
        pos[i] = step->pos[i];
        seq_of[i] = i;
        out_row[i] = i;
        seq[i] = (cuda_seq){i, 1, step->pos[i], i * pages};
        draw[i] = step->draw[i];
        for (int j = 0; j < pages; j++) { /* a sequence's lie apart */
            page[i * pages + j] = j * rows + (i + 3 * j) % rows;
        }
    }
    to->drawn = (int64_t)(s->rank.drawn - s->rank.step);
    device_write(s->m->dev, (void *)(uintptr_t)s->rank.step, bytes, at);
}

void side_run_ops(side *s, int bucket) {
    ls_error err = {0};
    const ls_program *program = s->m->program;
    for (int i = 0, taken = 0; i < program->n_ops; i += taken) {
        must(decode_launch(&s->rank, program->op, program->n_ops, i, bucket, &taken, &err), &err);
    }
}

void side_run_persistent(side *s) {
    sides_run_persistent(s, 1);
}

void sides_join(side *s, int n) {
    for (int r = 0; r < n; r++) {
        for (int from = 0; from < n; from++) {
            s[r].plan.args.node[from] = s[from].plan.args.node[from];
        }
    }
}

void sides_run_persistent(side *s, int n) {
    const persist_plan *plan[LS_MAX_RANKS];
    ls_error err = {0};
    for (int r = 0; r < n; r++) {
        plan[r] = &s[r].plan;
    }
    must(persist_launch(&s->rank, plan, n, s->fn, &err), &err);
}

static int by_wait(const void *a, const void *b) {
    return memcmp(a, b, sizeof(persist_wait));
}

/* Of every warp; the caller frees it. */
static persist_wait *read_waits(side *s, size_t *n) {
    *n = (size_t)s->plan.grid * (PERSIST_WARPS + 1);
    persist_wait *wait = need(malloc(*n * sizeof *wait));
    device_read(s->m->dev, wait, s->plan.args.wait, *n * sizeof *wait);
    return wait;
}

bool side_waited(side *s, int what, int op) {
    size_t n, i = 0;
    persist_wait *wait = read_waits(s, &n);
    while (i < n && (wait[i].what != what || wait[i].op != op)) {
        i++;
    }
    free(wait);
    return i < n;
}

/* What warps were left without, alike ones together. */
static void print_waits(side *s) {
    static const char *const names[PERSIST_WAITS] = {
        "nothing",        "a chunk that did not land", "(producer) a landing", "(producer) a slot",
        "sums of a tile", "words of its input",        "words of splits",      "words of nodes",
        "offers",         "bests of other ranks"};
    size_t n;
    persist_wait *wait = read_waits(s, &n);
    qsort(wait, n, sizeof *wait, by_wait);
    int printed = 0;
    for (size_t i = 0, end; i < n && printed < 24; i = end, printed++) {
        for (end = i + 1; end < n && by_wait(&wait[i], &wait[end]) == 0; end++) {
        }
        printf("       %4zu warps: %s", end - i, names[wait[i].what]);
        if (wait[i].what != PERSIST_WAIT_NONE) {
            printf(", op %d (%s) layer %d, chunk %u", wait[i].op,
                   wait[i].op < 0 ? "start" : op_kind_name(s->m->program->op[wait[i].op].kind), wait[i].layer,
                   wait[i].chunk);
        }
        printf("\n");
    }
    free(wait);
}

bool sides_are_well(side *s, int n, bool say, ls_error *err) {
    persist_stuck stuck[LS_MAX_RANKS] = {{0}};
    for (int r = 0; r < n; r++) {
        device_read(s->m->dev, &stuck[r], s[r].plan.args.stuck, sizeof *stuck);
    }
    const bool good = persist_check(stuck, n, s->m->program->op, s->plan.args.timeout_ns, err) == LS_OK;
    for (int r = 0; r < n && !good && say; r++) {
        print_waits(&s[r]);
    }
    return good;
}
