/*
 * The persistent decode kernel against the kernels that run op by op: the same program, the same weights, several steps in a row, each
 * continued with the tokens that it drew. Logits of rows that the host draws for, drawn tokens, faults and all of the KV
 * cache must be the same bits. On a GPU, or emulated (decode_emulate.cpp).
 *
 *     persist_check            all of it
 *     persist_check quick      small models only
 *     persist_check WORD       models with this in their name
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/numeric.h"
#include "model/family.h"
#include "persist_model.h"

enum { STEPS = 3, MAX_RANKS = LS_MAX_RANKS };

typedef struct shape {
    const char *name;
    int layers, d, f, heads, kv, d_head, vocab, window, max_len;
    bool bias, qk_norm;
    int blocks; /* of the emulated GPU */
    int chunk_bytes, norm_apart, parts;
    int ranks; /* at most */
    bool is_large, only_bf16;
} shape;

static const shape shapes[] = {
    {"tiny", 2, 64, 96, 4, 2, 32, 128, 0, 320, false, true, 3, 2048, 0, 0, 2, false, false},
    {"odd", 2, 136, 152, 6, 2, 80, 213, 100, 700, true, true, 6, 1024, 0, 2, 1, false, false},
    {"gqa7", 1, 160, 104, 14, 2, 64, 301, 0, 1200, true, false, 4, 1, 1, 4, 2, false, false},
    {"mha", 2, 48, 16, 3, 3, 96, 33, 300, 600, false, true, 3, 0, -1, 1, 1, false, false},
    {"mqa128", 1, 264, 328, 4, 1, 128, 515, 0, 2100, false, true, 5, 32768, 0, 0, 1, false, false},
    {"eight", 2, 64, 256, 8, 2, 16, 213, 0, 320, false, true, 2, 4096, 0, 0, 8, false, false},
    {"odd8", 1, 136, 152, 8, 8, 16, 301, 100, 600, true, true, 3, 1024, 1, 1, 8, false, false},
    {"qwen3-4b", 3, 2560, 9728, 32, 8, 128, 20011, 0, 1100, false, true, 0, 0, 0, 0, 8, true, false},
    {"mistral", 2, 4096, 14336, 32, 8, 128, 8000, 0, 600, false, false, 0, 32768, 0, 2, 8, true, true},
    {"qwen3-0.6b", 1, 1024, 3072, 16, 8, 128, 20011, 0, 4700, false, true, 0, 16384, 1, 8, 8, true, true},
};

static int n_passed, n_failed;

static void count(bool good, const char *what, const char *detail) {
    n_passed += good;
    n_failed += !good;
    if (!good) {
        printf("FAILED %s: %s\n", what, detail);
        fflush(stdout);
    }
}

/* ---- Models ---- */

static ls_status layer_of_all(program_builder *builder, int i, ls_error *err) {
    const ls_spec *spec = builder_spec(builder);
    TRY(build_qkv(builder, i, spec->qkv_bias, spec->qk_norm, err));
    TRY(build_attn(builder, i, i % 2 == 0 ? spec->window_tokens : 0, err));
    TRY(build_out(builder, i, spec->out_bias, err));
    TRY(build_ffn_in(builder, i, spec->mlp_bias, err));
    return build_ffn_out(builder, i, spec->mlp_bias, err);
}

static const ls_family any = {.model_type = "any", .architecture = "any", .layer = layer_of_all};

static ls_spec spec_of(const shape *s) {
    return (ls_spec){.family = &any,
                     .name = "any",
                     .n_layers = s->layers,
                     .d_model = s->d,
                     .d_ffn = s->f,
                     .n_heads = s->heads,
                     .n_kv_heads = s->kv,
                     .d_head = s->d_head,
                     .n_vocab = s->vocab,
                     .max_position_tokens = s->max_len,
                     .norm_eps = 1e-6,
                     .tied = !s->bias,
                     .qk_norm = s->qk_norm,
                     .qkv_bias = s->bias,
                     .out_bias = s->bias,
                     .mlp_bias = s->bias && !s->qk_norm,
                     .window_tokens = s->window,
                     .rope = {.type = ROPE_DEFAULT, .theta = 10000},
                     .dtype = LS_F32};
}

/* ---- A case ---- */

typedef struct check {
    const shape *s;
    ls_dtype dtype;
    char name[96];
    device *dev;
    ls_spec spec;
    model of_ops;
    side ops;
    int n_ranks;
    bool together;            /* ranks, in one launch */
    model of_rank[MAX_RANKS]; /* one: that of ops */
    side rank[MAX_RANKS];
    uint8_t *cache[1 + MAX_RANKS][2]; /* K, V as they are before the first step: of ops, of ranks; NULL: the same */
    bool is_faulty;                   /* an infinity in row 1's V */
    model_step step;
    uint32_t random;
} check;

static uint32_t next_u32(check *c) {
    c->random = c->random * 1664525u + 1013904223u;
    return c->random >> 8;
}

/* Values in [-2, 2) as bits of the dtype, by their place in the cache of all KV heads. */
static void fill_cache(const check *c, const side *s, bool is_v, uint8_t *out) {
    const shard_range heads = shard_kv_heads(c->s->kv, s->m->program->group);
    const int kv = (int)heads.count, first = (int)heads.first, row = LS_PAGE_TOKENS * c->s->d_head;
    int64_t n = (int64_t)(s->cache_bytes / ls_dtype_bytes(c->dtype)), per_page = (int64_t)kv * row;
    for (int64_t i = 0; i < n; i++) {
        const int64_t page = i / per_page, head = first + i % per_page / row,
                      at = (page * c->s->kv + head) * row + i % row;
        const uint32_t x = (uint32_t)(at * 2654435761u + (is_v ? 977 : 0)) * 2246822519u;
        store_as(c->dtype, out, i, ((float)(x >> 16) - 32768) * 0x1p-14F);
    }
    if (is_v && c->is_faulty && first == 0) { /* the first token of sequence 1 in layer 0: page 1 */
        store_as(c->dtype, out, per_page, INFINITY);
    }
}

/* which: 0 of ops, 1 .. of ranks. */
static void write_caches(check *c, const side *s, int which) {
    const int of = c->n_ranks > 1 ? which : 0;
    for (int v = 0; v < 2; v++) {
        if (c->cache[of][v] == NULL) {
            c->cache[of][v] = malloc(s->cache_bytes);
            fill_cache(c, s, v, c->cache[of][v]);
        }
        device_write(c->dev, v ? s->rank.bind.v_cache : s->rank.bind.k_cache, c->cache[of][v], s->cache_bytes);
    }
}

static void forget_caches(check *c) {
    for (int i = 0; i <= MAX_RANKS; i++) {
        for (int v = 0; v < 2; v++) {
            free(c->cache[i][v]);
            c->cache[i][v] = NULL;
        }
    }
}

static void open_case(check *c, device *dev, const shape *s, ls_dtype dtype, bool int8, int n_ranks, bool together) {
    char ranks[32] = "";
    if (n_ranks > 1) {
        snprintf(ranks, sizeof ranks, " %d ranks%s", n_ranks, together ? " on one" : "");
    }
    memset(c, 0, sizeof *c);
    c->s = s;
    c->dtype = dtype;
    c->dev = dev;
    c->n_ranks = n_ranks;
    c->together = together;
    c->random = 1;
    snprintf(c->name, sizeof c->name, "%s %s%s%s", s->name, int8 ? "int8 " : "", ls_dtype_name(dtype), ranks);
    c->spec = spec_of(s);
    device_mark(dev);
    model_open(&c->of_ops, dev, &c->spec, (ls_group){0, 1}, dtype, int8, MODEL_ROWS, s->max_len, false);
    side_open(&c->ops, &c->of_ops);
    c->ops.rank.attn_warps = PERSIST_WARPS;
    for (int r = 0; r < n_ranks; r++) {
        if (n_ranks > 1) {
            model_open(&c->of_rank[r], dev, &c->spec, (ls_group){r, n_ranks}, dtype, int8, MODEL_ROWS, s->max_len,
                       false);
        }
        side_open(&c->rank[r], n_ranks > 1 ? &c->of_rank[r] : &c->of_ops);
    }
}

static void close_case(check *c) {
    forget_caches(c);
    for (int r = 0; r < c->n_ranks && c->n_ranks > 1; r++) {
        model_close(&c->of_rank[r]);
    }
    model_close(&c->of_ops);
    device_release(c->dev);
}

/* short_ring: as short as can be. */
static void make_plans(check *c, int rows, bool short_ring) {
    persist_options how = {.rows = rows,
                           .max_len = c->s->max_len,
                           .chunk_bytes = c->s->chunk_bytes,
                           .norm_apart = c->s->norm_apart,
                           .parts = c->s->parts,
                           .ring_bytes = short_ring};
    how.blocks = device_blocks(c->dev, c->s->blocks * c->n_ranks) / c->n_ranks;
    how.here = c->together ? c->n_ranks : 1;
    how.window_bytes = c->s->is_large ? 0 : 6000;
    for (int r = 0; r < c->n_ranks; r++) {
        side_plan(&c->rank[r], &how);
        if (device_is_slow(c->dev)) {
            c->rank[r].plan.args.timeout_ns = (int64_t)300 * 1000000000;
        }
    }
    sides_join(c->rank, c->n_ranks);
}

/* ---- Steps ---- */

/* Positions meet the borders of units, pages and splits. */
static void first_step(check *c, int n) {
    static const int at[MODEL_ROWS] = {26, 0, 63, 64, 510, 255, 30, 1030, 257, 5, 511, 94, 700, 100, 1, 127};
    c->step.n = n;
    for (int i = 0; i < n; i++) {
        c->step.pos[i] = at[i] % (c->s->max_len - STEPS);
        c->step.token[i] = (int32_t)(next_u32(c) % (uint32_t)c->s->vocab);
    }
    if (c->s->max_len > 4000) {
        c->step.pos[0] = c->s->max_len - STEPS - 1;
    }
}

static void set_draws(check *c, int i_step) {
    static const float temperature[] = {0, 1, 0.7F, 2};
    for (int i = 0; i < c->step.n; i++) {
        c->step.draw[i] = (cuda_draw){.temperature = temperature[(i + i_step) % 4],
                                      .position = c->step.pos[i] + 1,
                                      .choice = (uint32_t)i % 3,
                                      .on_host = (i + i_step) % 3 == 1,
                                      .seed = 42 + (uint64_t)i * 0x100000001u};
    }
}

static bool same_floats(const float *a, const float *b, int64_t n, int64_t *where) {
    for (*where = 0; *where < n; ++*where) {
        if (f32_bits(a[*where]) != f32_bits(b[*where]) && !(isnan(a[*where]) && isnan(b[*where]))) {
            return false;
        }
    }
    return true;
}

static const op_head *head_of(const side *s) {
    return &s->m->program->op[s->m->program->n_ops - 2].head;
}

static void compare_logits(check *c, const side *s, const char *what) {
    const int64_t all = c->s->vocab;
    const op_head *head = head_of(s);
    float *ours = malloc((size_t)head->vocab_count * sizeof *ours), *theirs = malloc((size_t)all * sizeof *theirs);
    char detail[160];
    for (int i = 0; i < c->step.n; i++) {
        if (c->step.draw[i].on_host) {
            int64_t at;
            device_read(c->dev, ours, (float *)s->rank.bind.buf[BUF_LOGITS] + (int64_t)i * head->vocab_count,
                        (size_t)head->vocab_count * sizeof *ours);
            device_read(c->dev, theirs, (float *)c->ops.rank.bind.buf[BUF_LOGITS] + (int64_t)i * all,
                        (size_t)all * sizeof *theirs);
            const bool same = same_floats(ours, theirs + head->vocab_first, head->vocab_count, &at);
            snprintf(detail, sizeof detail, "row %d logit %lld is %.9g, not %.9g", i, (long long)at,
                     same ? 0 : (double)ours[at], same ? 0 : (double)theirs[head->vocab_first + at]);
            count(same, what, detail);
        }
    }
    free(ours);
    free(theirs);
}

static void compare_ints(check *c, const void *ours, const void *theirs, const char *of, const char *what) {
    int32_t a[MODEL_ROWS], b[MODEL_ROWS];
    char detail[160];
    device_read(c->dev, a, ours, sizeof a);
    device_read(c->dev, b, theirs, sizeof b);
    for (int i = 0; i < c->step.n; i++) {
        snprintf(detail, sizeof detail, "row %d: %s %d, not %d", i, of, a[i], b[i]);
        count(a[i] == b[i], what, detail);
    }
}

static void compare_caches(check *c, const char *what) {
    char detail[160];
    uint8_t *ours = malloc(c->ops.cache_bytes), *theirs = malloc(c->ops.cache_bytes);
    for (int v = 0; v < 2; v++) {
        const ls_bind *a = &c->rank[0].rank.bind, *b = &c->ops.rank.bind;
        device_read(c->dev, ours, v ? a->v_cache : a->k_cache, c->ops.cache_bytes);
        device_read(c->dev, theirs, v ? b->v_cache : b->k_cache, c->ops.cache_bytes);
        size_t i = memcmp(ours, theirs, c->ops.cache_bytes) == 0 ? c->ops.cache_bytes : 0;
        while (i < c->ops.cache_bytes && ours[i] == theirs[i]) {
            i++;
        }
        snprintf(detail, sizeof detail, "byte %zu of the %c cache", i, v ? 'V' : 'K');
        count(i == c->ops.cache_bytes, what, detail);
    }
    free(ours);
    free(theirs);
}

/* What crossed SMs in the last layer against what the other kernels left there, to say where a difference began. */
static void explain(check *c) {
    static const struct {
        int kind;
        ls_buf buf;
    } of[] = {{PERSIST_QKV, BUF_QKV}, {PERSIST_ATTN, BUF_ATT}, {PERSIST_FFN_IN, BUF_ACT}, {PERSIST_ROW, BUF_H}};
    const side *s = &c->rank[0];
    for (size_t i = 0; i < sizeof of / sizeof *of; i++) {
        const persist_op *line = NULL;
        for (int j = 0; j < s->plan.args.n_ops; j++) {
            line = s->plan.op[j].kind == of[i].kind ? &s->plan.op[j] : line;
        }
        const bool is_f32 = of[i].buf == BUF_QKV || of[i].buf == BUF_H || c->dtype == LS_F32;
        const int64_t n = (int64_t)c->step.n * line->out_stride, per_word = is_f32 ? 1 : 2;
        uint64_t *word = malloc((size_t)(n / per_word) * sizeof *word);
        uint32_t *wanted = malloc((size_t)(n / per_word) * sizeof *wanted);
        device_read(c->dev, word, line->out, (size_t)(n / per_word) * sizeof *word);
        device_read(c->dev, wanted, c->ops.rank.bind.buf[of[i].buf], (size_t)(n / per_word) * sizeof *wanted);
        int64_t n_wrong = 0, first = -1;
        for (int64_t at = 0; at < n / per_word; at++) {
            const bool wrong = (uint32_t)word[at] != wanted[at];
            first = wrong && first < 0 ? at : first;
            n_wrong += wrong;
        }
        printf("       behind the last %s: %lld of %lld words differ",
               op_kind_name(c->ops.m->program->op[line->index].kind), (long long)n_wrong, (long long)(n / per_word));
        if (n_wrong > 0) {
            printf(", from row %lld element %lld on: %08x (epoch %u), not %08x",
                   (long long)(first * per_word / line->out_stride), (long long)(first * per_word % line->out_stride),
                   (uint32_t)word[first], (uint32_t)(word[first] >> 32), wanted[first]);
        }
        printf("\n");
        free(word);
        free(wanted);
    }
    fflush(stdout);
}

static int bucket_of(int n) {
    int bucket = 1;
    while (bucket < n) {
        bucket *= 2;
    }
    return bucket;
}

static bool run_step(check *c, const char *what) {
    ls_error err = {0};
    side_upload(&c->ops, &c->step);
    side_run_ops(&c->ops, bucket_of(c->step.n));
    bool good = device_wait(c->dev, what);
    for (int r = 0; r < c->n_ranks && good; r++) {
        device_fill(c->dev, c->rank[r].rank.bind.buf[BUF_LOGITS], 0xff,
                    (size_t)(c->step.n * head_of(&c->rank[r])->vocab_count) * sizeof(float));
        side_upload(&c->rank[r], &c->step);
    }
    for (int r = 0; r < c->n_ranks && good && !c->together; r++) {
        side_run_persistent(&c->rank[r]);
    }
    if (good && c->together) {
        sides_run_persistent(c->rank, c->n_ranks);
    }
    good = good && device_wait(c->dev, what) && sides_are_well(c->rank, c->n_ranks, true, &err);
    if (!good) {
        count(false, what, err.text);
    }
    return good;
}

static void next_step(check *c) {
    for (int i = 0; i < c->step.n; i++) {
        c->step.pos[i]++;
        c->step.token[i] = c->step.draw[i].on_host || (c->is_faulty && i == 1)
                               ? (int32_t)(next_u32(c) % (uint32_t)c->s->vocab)
                               : LS_TOKEN_DRAWN + i;
    }
}

static void check_rows(check *c, int n, int rows) {
    char what[160];
    write_caches(c, &c->ops, 0);
    for (int r = 0; r < c->n_ranks; r++) {
        write_caches(c, &c->rank[r], r + 1);
    }
    make_plans(c, rows, n % 2 == 1 && n > 1);
    first_step(c, n);
    const int failed = n_failed;
    for (int i = 0; i < STEPS; i++) {
        snprintf(what, sizeof what, "%s M=%d step %d", c->name, n, i);
        set_draws(c, i);
        if (!run_step(c, what)) {
            return;
        }
        for (int r = 0; r < c->n_ranks; r++) {
            compare_logits(c, &c->rank[r], what);
            compare_ints(c, c->rank[r].rank.bind.fault, c->ops.rank.bind.fault, "fault", what);
            compare_ints(c, (void *)(uintptr_t)c->rank[r].rank.drawn, (void *)(uintptr_t)c->ops.rank.drawn, "drew",
                         what);
        }
        if (n_failed > failed && c->n_ranks == 1) {
            explain(c);
            return;
        }
        next_step(c);
    }
    if (c->n_ranks == 1 && !c->is_faulty) {
        compare_caches(c, what);
    }
}

/* An element of h that is never said: the kernel ends, and names the op that waits for it. */
static void check_stuck(check *c) {
    char detail[600];
    ls_error err = {0};
    side *s = &c->rank[0];
    make_plans(c, 1, false);
    first_step(c, 1);
    set_draws(c, 0);
    int out = 0;
    while (s->plan.op[out].kind != PERSIST_ROW) {
        out++;
    }
    s->plan.op[out].rows -= 1;
    s->plan.args.timeout_ns = (device_is_slow(c->dev) ? 20 : 1) * (int64_t)200000000;
    device_write(c->dev, (void *)(uintptr_t)s->plan.args.op, s->plan.op,
                 (size_t)s->plan.args.n_ops * sizeof *s->plan.op);
    side_upload(s, &c->step);
    side_run_persistent(s);
    if (!device_wait(c->dev, "a stuck kernel")) {
        count(false, c->name, "a stuck kernel does not end");
        return;
    }
    const bool well = sides_are_well(s, 1, false, &err);
    /* Blocks that have nothing to do in ffn_in wait further on, and any one may be the first to give up. */
    const bool at_owner = s->plan.op[out].n_parts > 1;
    const bool known = at_owner ? side_waited(s, PERSIST_WAIT_NODES, s->plan.op[out].index)
                                : side_waited(s, PERSIST_WAIT_INPUT, s->plan.op[out + 1].index) ||
                                      side_waited(s, PERSIST_WAIT_INPUT, s->plan.op[out + 2].index);
    snprintf(detail, sizeof detail, "a stuck kernel says '%s'", err.text);
    count(!well && strstr(err.text, "waited in vain in op") != NULL, c->name, detail);
    count(known, c->name, "no warp of a stuck kernel says that it waited for what there was not");
}

/* Ranks that wait for the last one, in vain, each with its own patience: *err says what the host would. */
static bool ranks_without(check *c, const char *what, int n_launched, const int64_t *timeout_ns, ls_error *err) {
    for (int r = 0; r < c->n_ranks; r++) {
        c->rank[r].plan.args.timeout_ns = timeout_ns[r];
        side_upload(&c->rank[r], &c->step);
    }
    for (int r = 0; r < n_launched && !c->together; r++) {
        side_run_persistent(&c->rank[r]);
    }
    if (c->together) {
        sides_run_persistent(c->rank, n_launched);
    }
    if (!device_wait(c->dev, what)) {
        count(false, what, "it does not end");
        return false;
    }
    const bool well = sides_are_well(c->rank, c->n_ranks, false, err);
    count(!well, what, "it ended well");
    return !well;
}

/* A rank that is not there, or does not send an element: the patience of one ends the waiting of all, and the error names the rank, the op
 * and its layer. */
static void check_stuck_ranks(check *c) {
    const int64_t forever = (int64_t)300 * 1000000000,
                  short_ns = (device_is_slow(c->dev) ? 20 : 5) * (int64_t)200000000;
    const int last = c->n_ranks - 1;
    char what[160], wanted[64], detail[600];
    for (int k = 0; k < 2; k++) {
        int64_t timeout_ns[MAX_RANKS];
        ls_error err = {0};
        snprintf(what, sizeof what, "%s without %s", c->name, k == 0 ? "a rank" : "an element");
        make_plans(c, 1, false);
        first_step(c, 1);
        set_draws(c, 0);
        int out = k == 0 ? 0 : 1;
        side *s = &c->rank[last];
        while (s->plan.op[out].kind != (k == 0 ? PERSIST_EMBED : PERSIST_ROW)) {
            out++;
        }
        if (k == 1) {
            s->plan.op[out].rows -= 1;
            device_write(c->dev, (void *)(uintptr_t)s->plan.args.op, s->plan.op,
                         (size_t)s->plan.args.n_ops * sizeof *s->plan.op);
        }
        for (int r = 0; r < c->n_ranks; r++) {
            timeout_ns[r] = r == 0 ? short_ns : forever;
        }
        if (!ranks_without(c, what, k == 0 ? last : c->n_ranks, timeout_ns, &err)) {
            continue;
        }
        snprintf(detail, sizeof detail, "it says '%s'", err.text);
        snprintf(wanted, sizeof wanted, "for rank %d,", last);
        count(strstr(err.text, wanted) != NULL, what, detail);
        count(strstr(err.text, k == 0 ? "in op exchange of the" : "in op exchange of layer 0") != NULL, what, detail);
        count(c->n_ranks > 2 || k > 0 || strstr(err.text, "rank 0 waited") != NULL, what, detail);
    }
}

/* What the host makes of what ranks were left without. */
static void check_causes(device *dev) {
    check *c = calloc(1, sizeof *c);
    open_case(c, dev, &shapes[0], LS_BF16, false, 1, false);
    const ls_op *op = c->of_ops.program->op;
    static const struct {
        persist_stuck stuck[4];
        const char *says;
    } cases[] = {
        {{{0}}, ""},
        {{{.claimed = 1, .ends_ns = 1, .op = 2, .layer = 0, .block = 7}}, "rank 0: block 7"},
        {{{.ends_ns = 1}, {.missing = (uint64_t)4 << 32 | 8}, {.missing = (uint64_t)2 << 32 | 5}}, "rank 2 waited"},
        {{{.ends_ns = 1}, {.missing = (uint64_t)4 << 32 | 8}, {.missing = (uint64_t)2 << 32 | 5}}, "for rank 1,"},
        {{{.claimed = 1, .missing = (uint64_t)4 << 32 | 5}, {0}, {0}, {.claimed = 1, .op = 4, .layer = 0, .block = 3}},
         "rank 3: block 3"},
        {{{.claimed = 1, .missing = (uint64_t)4 << 32 | 5}, {0}, {0}, {.ends_ns = 1}},
         "rank 0 waited 4.0 s in op exchange"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ls_error err = {0};
        const ls_status st = persist_check(cases[i].stuck, 4, op, 4000000000, &err);
        count(st == (cases[i].says[0] != '\0' ? LS_EABORTED : LS_OK) && strstr(err.text, cases[i].says) != NULL,
              cases[i].says, err.text);
    }
    close_case(c);
    free(c);
}

/* What the kernel does not run, its plan refuses: the engine then takes the other one. */
static void check_refusals(device *dev) {
    static persist_plan plan;
    check *c = calloc(1, sizeof *c);
    ls_error err = {0};
    open_case(c, dev, &shapes[0], LS_BF16, false, 1, false);
    const persist_options how = {.rows = 1, .max_len = c->s->max_len, .blocks = 1};
    const ls_program *program = c->of_ops.program;
    cuda_rank rank = c->rank[0].rank;
    rank.facts.cc_major = 8;
    ls_status st = persist_plan_build(&plan, &rank, program->op, program->n_ops, &how, 0, &err);
    count(st == LS_EUNSUPPORTED && strstr(err.text, "sm_90") != NULL, "an older chip", err.text);
    rank.facts.cc_major = 9;
    rank.jit_us = 0;
    rank.bind.kv_dtype = LS_F32;
    st = persist_plan_build(&plan, &rank, program->op, program->n_ops, &how, 0, &err);
    count(st == LS_EUNSUPPORTED && strstr(err.text, "KV dtype") != NULL, "a KV cache of f32", err.text);
    rank.bind.kv_dtype = LS_BF16;
    rank.facts.shared_bytes_per_block = 32 << 10;
    st = persist_plan_build(&plan, &rank, program->op, program->n_ops, &how, 0, &err);
    count(st == LS_EUNSUPPORTED && strstr(err.text, "shared memory") != NULL, "too little shared memory", err.text);
    close_case(c);
    free(c);
}

/* Every number of rows, for the smallest model of ranks. */
static bool takes_rows(const shape *s, int n_ranks, bool quick, int n) {
    const bool is_border = n <= 3 || n == 8 || n == 9 || n == 16;
    return quick ? n == 1 || n == 3 || n == 9 : is_border || (n_ranks > 1 && strcmp(s->name, "eight") == 0);
}

static void check_model(device *dev, const shape *s, ls_dtype dtype, bool int8, int n_ranks, bool together,
                        bool quick) {
    check *c = calloc(1, sizeof *c);
    const int passed = n_passed, failed = n_failed;
    open_case(c, dev, s, dtype, int8, n_ranks, together);
    for (int n = 1; n <= MODEL_ROWS; n++) {
        if (takes_rows(s, n_ranks, quick, n)) {
            check_rows(c, n, quick ? 16 : n % 2 == 0 && n < MODEL_ROWS ? n + 2 : n);
        }
    }
    if (!s->is_large) {
        if (n_ranks > 1) {
            check_stuck_ranks(c);
        } else {
            check_stuck(c);
        }
        c->is_faulty = true;
        forget_caches(c);
        check_rows(c, 3, 3);
    }
    printf("%-4s %-28s %4d checks\n", n_failed == failed ? "ok" : "BAD", c->name,
           n_passed - passed + n_failed - failed);
    fflush(stdout);
    close_case(c);
    free(c);
}

static void check_ranks(device *dev, const shape *s, bool quick) {
    for (int n = 2; n <= s->ranks; n *= 2) {
        const bool together = !device_is_slow(dev) || n != 4; /* on a GPU they share it */
        check_model(dev, s, LS_BF16, false, n, together, quick);
        if (!s->is_large && !quick) {
            check_model(dev, s, LS_F32, false, n, !device_is_slow(dev), quick);
            check_model(dev, s, LS_F16, false, n, !device_is_slow(dev) || n == 2, quick);
        }
        if (s->d % 16 == 0 && s->f % 128 == 0) {
            check_model(dev, s, LS_BF16, true, n, together, quick);
        }
    }
}

int main(int argc, char **argv) {
    const char *word = argc > 1 ? argv[1] : "";
    const bool quick = strcmp(word, "quick") == 0;
    device *dev = device_open();
    if (dev == NULL) {
        return 2;
    }
    check_refusals(dev);
    check_causes(dev);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const shape *s = &shapes[i];
        if (device_blocks(dev, 1) == 0 || (s->is_large && (quick || device_is_slow(dev))) ||
            (!quick && strstr(s->name, word) == NULL)) {
            continue;
        }
        check_model(dev, s, LS_BF16, false, 1, false, quick);
        if (!s->only_bf16) {
            check_model(dev, s, LS_F32, false, 1, false, quick);
            check_model(dev, s, LS_F16, false, 1, false, quick);
        }
        if (s->d % 16 == 0 && s->f % 16 == 0) { /* rows of 16 bytes */
            check_model(dev, s, LS_BF16, true, 1, false, quick);
        }
        check_ranks(dev, s, quick);
    }
    printf("%d passed, %d failed\n", n_passed, n_failed);
    device_close(dev);
    return n_failed > 0;
}
