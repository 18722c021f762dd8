/*
 * The same bits whatever the machine does: tokens and logits_hash of every request are equal for any number of ranks and
 * threads, any chunking, alone or beside others that come and go, with preemption, on any instruction set and from run
 * to run, in every dtype. Sampled text too.
 *
 * Each golden case and the demo model is run once plainly (one rank, one thread, each prompt alone) and then in every
 * variant. The count of preemptions is reached through engine/engine.h.
 */
#include "e2e.h"

#include "engine/engine.h"

static const ls_dtype DTYPES[] = {LS_F32, LS_BF16, LS_F16};

/* How a run differs from the plain one; zero means as it is. */
typedef struct variant {
    const char *what;
    ls_engine_params params;
    const char *isa;
    bool alone; /* one prompt after the other */
    bool for_sanitizers;
} variant;

#define PARAMS(...)                                                                                                    \
    { .struct_size = sizeof(ls_engine_params), __VA_ARGS__ }

static const variant PLAIN = {.what = "plain", .params = PARAMS(.threads = 1), .alone = true};

static const variant VARIANTS[] = {
    {.what = "again", .params = PARAMS(.threads = 1), .alone = true},
    {.what = "as a batch", .params = PARAMS(.threads = 1)},
    {.what = "2 ranks", .params = PARAMS(.tensor_parallel_size = 2, .threads = 1), .for_sanitizers = true},
    {.what = "4 ranks", .params = PARAMS(.tensor_parallel_size = 4, .threads = 1)},
    {.what = "8 ranks", .params = PARAMS(.tensor_parallel_size = 8, .threads = 1), .for_sanitizers = true},
    {.what = "2 threads", .params = PARAMS(.threads = 2)},
    {.what = "3 threads", .params = PARAMS(.threads = 3), .for_sanitizers = true},
    {.what = "2 ranks, 2 threads", .params = PARAMS(.tensor_parallel_size = 2, .threads = 2), .for_sanitizers = true},
    {.what = "1 row a step", .params = PARAMS(.threads = 1, .max_num_batched_tokens = 1, .max_num_seqs = 1)},
    {.what = "5 rows a step",
     .params = PARAMS(.threads = 1, .max_num_batched_tokens = 5, .max_num_seqs = 3),
     .for_sanitizers = true},
    {.what = "16 rows a step", .params = PARAMS(.threads = 1, .max_num_batched_tokens = 16)},
    {.what = "64 rows a step", .params = PARAMS(.threads = 1, .max_num_batched_tokens = 64)},
    {.what = "4 ranks, 7 rows a step",
     .params = PARAMS(.tensor_parallel_size = 4, .max_num_batched_tokens = 7, .max_num_seqs = 2)},
    {.what = "plain C", .params = PARAMS(.threads = 1), .isa = "ref"},
    {.what = "AVX2", .params = PARAMS(.threads = 1), .isa = "avx2"},
    {.what = "AVX-512, 2 ranks", .params = PARAMS(.tensor_parallel_size = 2, .threads = 1), .isa = "avx512"},
};

static void run_variant(ls_model *model, ls_dtype dtype, ls_dtype kv_dtype, const variant *v, job *jobs, size_t n) {
    ls_engine_params params = v->params;
    params.dtype = dtype;
    params.kv_cache_dtype = kv_dtype;
    params.cpu_isa = v->isa;
    ls_engine *engine = engine_open(model, &params);
    assert_true(v->isa == NULL || strcmp(engine->isa->name, v->isa) == 0);
    for (size_t i = 0; v->alone && i < n; i++) {
        jobs_run(engine, &jobs[i], 1);
    }
    if (!v->alone) {
        jobs_run(engine, jobs, n);
    }
    ls_engine_close(&engine);
}

static void compare_all(const char *name, ls_dtype dtype, const char *what, const job *a, const job *b, size_t n) {
    for (size_t i = 0; i < n; i++) {
        char where[160];
        snprintf(where, sizeof where, "%s, %s, %s, prompt %zu", name, ls_dtype_name(dtype), what, i);
        assert_int_equal(a[i].finish, LS_FINISH_LENGTH);
        assert_true(a[i].n_token > 0 && a[i].hash != 0);
        assert_same_answer(&a[i], &b[i], where);
    }
}

/* A model whose heads do not split over the ranks is refused, with the counts that work. */
static bool refused(ls_model *model, const ls_engine_params *params) {
    ls_model_info info = LS_MODEL_INFO_INIT;
    ls_error err = {0};
    assert_int_equal(ls_model_get_info(model, &info, &err), LS_OK);
    int n_ranks = params->tensor_parallel_size > 0 ? params->tensor_parallel_size : 1;
    bool splits = info.n_heads % n_ranks == 0 && (info.n_kv_heads % n_ranks == 0 || n_ranks % info.n_kv_heads == 0);
    if (!splits) {
        ls_engine *engine = NULL;
        char heads[64];
        snprintf(heads, sizeof heads, "%d query heads", info.n_heads);
        ASSERT_FAILS(ls_engine_open(model, params, &engine, &err), &err, LS_EUNSUPPORTED, "--tensor-parallel-size",
                     heads, "it runs with 1, 2, 4");
        assert_null(engine);
    }
    return !splits;
}

static bool available(const variant *v) {
    return (v->isa == NULL || cpu_isa_find(v->isa) != NULL) && (v->for_sanitizers || !sanitized());
}

/* int8 weights, in the variants that split or compute differently: all ranks, and each instruction set. Returns how many
 * runs were refused. */
static int check_quantized(const char *name, ls_model *model, const job *wanted, size_t n) {
    job plain[2][GOLDEN_PROMPTS], jobs[GOLDEN_PROMPTS];
    int n_refused = 0;
    for (int q = 0; q < 2; q++) {
        const ls_quantization how = q == 0 ? LS_QUANTIZATION_W8A16 : LS_QUANTIZATION_W8A8;
        variant plainly = PLAIN;
        plainly.params.quantization = how;
        memcpy(plain[q], wanted, n * sizeof *jobs);
        run_variant(model, DTYPES[n % 3], LS_AUTO, &plainly, plain[q], n);
        for (size_t i = 0; i < COUNT(VARIANTS); i++) {
            variant v = VARIANTS[i];
            v.params.quantization = how;
            bool differs = v.params.tensor_parallel_size > 1 || v.isa != NULL || v.params.max_num_batched_tokens == 5;
            if (!available(&v) || !differs) {
                continue;
            }
            if (refused(model, &v.params)) {
                n_refused++;
                continue;
            }
            memcpy(jobs, wanted, n * sizeof *jobs);
            run_variant(model, DTYPES[n % 3], LS_AUTO, &v, jobs, n);
            compare_all(name, LS_INT8, v.what, plain[q], jobs, n);
            jobs_clear(jobs, n);
        }
    }
    assert_true(plain[0][n - 1].hash != plain[1][n - 1].hash); /* two ways, not one */
    jobs_clear(plain[0], n);
    jobs_clear(plain[1], n);
    return n_refused;
}

/* Every variant of every dtype against the plain run. Returns how many runs were refused. */
static int check_variants(const char *name, ls_model *model, const job *wanted, size_t n) {
    job plain[GOLDEN_PROMPTS], jobs[GOLDEN_PROMPTS];
    int n_refused = 0;
    for (size_t k = 0; k < COUNT(DTYPES); k++) {
        ls_dtype kv_dtype = DTYPES[(k + 1) % COUNT(DTYPES)];
        if (sanitized() && k != n % COUNT(DTYPES)) {
            continue; /* the golden cases in f32, the demo in f16 */
        }
        memcpy(plain, wanted, n * sizeof *plain);
        run_variant(model, DTYPES[k], LS_AUTO, &PLAIN, plain, n);
        for (size_t i = 0; i < COUNT(VARIANTS); i++) {
            if (!available(&VARIANTS[i])) {
                continue;
            }
            if (refused(model, &VARIANTS[i].params)) {
                n_refused++;
                continue;
            }
            memcpy(jobs, wanted, n * sizeof *jobs);
            run_variant(model, DTYPES[k], LS_AUTO, &VARIANTS[i], jobs, n);
            compare_all(name, DTYPES[k], VARIANTS[i].what, plain, jobs, n);
            jobs_clear(jobs, n);
        }
        /* A KV cache of another dtype gives other bits, but the same ones at every R. */
        const variant ranks2 = {.what = "another KV dtype, 2 ranks",
                                .params = PARAMS(.tensor_parallel_size = 2, .threads = 1)};
        job other[GOLDEN_PROMPTS];
        memcpy(jobs, wanted, n * sizeof *jobs);
        memcpy(other, wanted, n * sizeof *other);
        run_variant(model, DTYPES[k], kv_dtype, &PLAIN, jobs, n);
        run_variant(model, DTYPES[k], kv_dtype, &ranks2, other, n);
        compare_all(name, DTYPES[k], ranks2.what, jobs, other, n);
        assert_true(jobs[n - 1].hash != plain[n - 1].hash || kv_dtype == LS_F32);
        jobs_clear(plain, n);
        jobs_clear(jobs, n);
        jobs_clear(other, n);
    }
    return n_refused;
}

static void golden_cases_in_every_variant(void **state) {
    (void)state;
    golden_list list;
    int n_refused = 0;
    golden_open(&list);
    for (size_t i = 0; i < list.n; i++) {
        const golden_case *c = &list.item[i];
        if (sanitized() && i % 8 != 2) {
            continue;
        }
        double start = now_s();
        job wanted[GOLDEN_PROMPTS] = {{0}};
        size_t n = c->prompt[0].n > 100 ? 2 : GOLDEN_PROMPTS; /* long ones take their time */
        for (size_t p = 0; p < n; p++) {
            wanted[p] = (job){.id = c->prompt[p].id, .n_id = c->prompt[p].n, .max_tokens = 8};
        }
        ls_model *model = golden_model(c);
        n_refused += check_variants(c->name, model, wanted, n);
        n_refused += i % 6 == 2 ? check_quantized(c->name, model, wanted, n) : 0;
        ls_model_close(&model);
        print_message("%-24s %.1f s\n", c->name, now_s() - start);
    }
    assert_true(n_refused > 0);
    golden_close(&list);
}

static const char *const STORIES[] = {"Once upon a time, there was a little dog named",
                                      "Lily and Tom went to the park with their mom. They saw a big", "The"};

static void demo_in_every_variant(void **state) {
    (void)state;
    job wanted[COUNT(STORIES)] = {{0}};
    for (size_t i = 0; i < COUNT(STORIES); i++) {
        wanted[i] = (job){.text = STORIES[i], .max_tokens = sanitized() ? 4 : 24};
    }
    ls_model *model = demo_model();
    assert_int_equal(check_variants("demo", model, wanted, COUNT(STORIES) - (sanitized() ? 1 : 0)), 0);
    assert_int_equal(check_quantized("demo", model, wanted, COUNT(STORIES) - (sanitized() ? 1 : 0)), 0);
    ls_model_close(&model);
}

/* ---- Neighbours and preemption ---- */

enum { CROWD = 6 };

/* Jobs that come and go at different steps, two of them cancelled; alone says that each is to run by itself. */
static void fill_crowd(job jobs[CROWD], bool alone) {
    static const char *const texts[] = {"Once upon a time",
                                        "The",
                                        "Tim was afraid of the dark. At night he always kept",
                                        "One day, a small bird could not find her nest.",
                                        "a",
                                        "Sue was sick."};
    static const int n_new[2][CROWD] = {{150, 90, 120, 140, 60, 100}, {75, 30, 60, 12, 25, 10}};
    static const int join[CROWD] = {0, 0, 3, 10, 11, 40};
    static const int leave[CROWD] = {0, 17, 0, 0, 30, 0};
    for (int i = 0; i < CROWD; i++) {
        jobs[i] = (job){.text = texts[i],
                        .max_tokens = n_new[sanitized()][i],
                        .seed = (uint64_t)i,
                        .temperature = i % 2 == 0 ? 0 : 0.8,
                        .top_k = i == 3 ? 40 : 0,
                        .top_p = i == 5 ? 0.9 : 0};
        if (!alone) {
            jobs[i].join_step = join[i];
            jobs[i].leave_step = leave[i];
        }
    }
}

static void compare_crowd(const job *alone, const job *crowd, const char *what) {
    int n_left = 0;
    for (int i = 0; i < CROWD; i++) {
        if (crowd[i].left) {
            int n = crowd[i].n_token; /* none if it was cancelled while it waited */
            assert_true(n < alone[i].n_token);
            assert_memory_equal(crowd[i].token, alone[i].token, (size_t)n * sizeof *alone[i].token);
            n_left += n > 0;
        } else {
            assert_same_answer(&alone[i], &crowd[i], what);
        }
    }
    assert_true(n_left > 0);
}

static void neighbours_come_and_go(void **state) {
    (void)state;
    ls_model *model = demo_model();
    job alone[CROWD], crowd[CROWD];
    fill_crowd(alone, true);
    run_variant(model, LS_BF16, LS_AUTO, &PLAIN, alone, CROWD);
    static const variant together[] = {
        {.what = "crowd", .params = PARAMS(.max_num_seqs = 8)},
        {.what = "crowd of 3 seats", .params = PARAMS(.max_num_seqs = 3, .max_num_batched_tokens = 4)},
        {.what = "crowd on 4 ranks", .params = PARAMS(.tensor_parallel_size = 4, .threads = 1)},
    };
    for (size_t i = 0; i < (sanitized() ? 1 : COUNT(together)); i++) {
        fill_crowd(crowd, false);
        run_variant(model, LS_BF16, LS_AUTO, &together[i], crowd, CROWD);
        compare_crowd(alone, crowd, together[i].what);
        jobs_clear(crowd, CROWD);
    }
    jobs_clear(alone, CROWD);
    ls_model_close(&model);
}

static void preempted_text_is_the_same(void **state) {
    (void)state;
    ls_model *model = demo_model();
    ls_engine_params params = PARAMS(.dtype = LS_F16, .threads = 2, .max_model_len_tokens = 192);
    job alone[CROWD], crowd[CROWD];
    fill_crowd(alone, true);
    ls_engine *engine = engine_open(model, &params);
    for (int i = 0; i < CROWD; i++) {
        jobs_run(engine, &alone[i], 1);
    }
    assert_int_equal(engine->stats.preemptions, 0);
    int64_t page_bytes = kv_page_bytes(&engine->config, &model->spec);
    ls_engine_close(&engine);

    static const int n_ranks[] = {2, 1};
    for (size_t i = 0; i < COUNT(n_ranks) - (sanitized() ? 1 : 0); i++) {
        params.tensor_parallel_size = n_ranks[i];
        params.threads = 1;
        params.max_num_batched_tokens = 16 * (int)(i + 1);
        params.kv_cache_memory_bytes = page_bytes * (sanitized() ? 2 : 4);
        fill_crowd(crowd, false);
        engine = engine_open(model, &params);
        assert_int_equal(engine->config.n_pages, sanitized() ? 2 : 4);
        jobs_run(engine, crowd, CROWD);
        print_message("%d ranks: %lld preemptions\n", n_ranks[i], (long long)engine->stats.preemptions);
        assert_true(engine->stats.preemptions > 0);
        assert_int_equal(engine->pages.n_free, engine->pages.n_pages);
        assert_int_equal(engine->n_running, 0);
        ls_engine_close(&engine);
        compare_crowd(alone, crowd, "preempted");
        jobs_clear(crowd, CROWD);
    }
    jobs_clear(alone, CROWD);
    ls_model_close(&model);
}

/* Prompt logits come once for each position, with the same bits, although preemption computes prompts twice. */
static void prompt_logits_survive_preemption(void **state) {
    (void)state;
    golden_list list;
    golden_open(&list);
    const golden_case *c = NULL;
    for (size_t i = 0; i < list.n; i++) {
        c = strcmp(list.item[i].name, "mistral_window") == 0 ? &list.item[i] : c;
    }
    assert_non_null(c);
    enum { N = 4, NEW = 70 };
    ls_model *model = golden_model(c);
    job jobs[2][N] = {{{0}}};
    for (int run = 0; run < 2; run++) {
        ls_engine_params params = PARAMS(.threads = 1, .max_num_batched_tokens = run == 0 ? 128 : 6, .max_num_seqs = N);
        ls_engine *engine = engine_open(model, &params);
        int64_t page_bytes = kv_page_bytes(&engine->config, &model->spec);
        if (run == 1) {
            ls_engine_close(&engine);
            params.kv_cache_memory_bytes = 4 * page_bytes;
            engine = engine_open(model, &params);
        }
        for (int i = 0; i < N; i++) {
            const golden_prompt *p = &c->prompt[i % GOLDEN_PROMPTS];
            job *j = &jobs[run][i];
            *j = (job){.id = p->id, .n_id = p->n, .max_tokens = NEW, .prompt_logits = true, .n_rows = p->n + NEW};
            j->logits = calloc((size_t)j->n_rows * (size_t)c->n_vocab, sizeof *j->logits);
            assert_non_null(j->logits);
        }
        jobs_run(engine, jobs[run], N);
        assert_true((engine->stats.preemptions > 0) == (run == 1));
        ls_engine_close(&engine);
    }
    for (int i = 0; i < N; i++) {
        const job *a = &jobs[0][i], *b = &jobs[1][i];
        assert_same_answer(a, b, "preempted with prompt logits");
        for (int pos = 0; pos < a->n_rows; pos++) {
            assert_int_equal(a->n_seen[pos], pos < a->n_rows - 1);
            assert_int_equal(b->n_seen[pos], a->n_seen[pos]);
        }
        assert_memory_equal(a->logits, b->logits, (size_t)a->n_rows * (size_t)c->n_vocab * sizeof *a->logits);
        free(a->logits);
        free(b->logits);
    }
    jobs_clear(jobs[0], N);
    jobs_clear(jobs[1], N);
    ls_model_close(&model);
    golden_close(&list);
}

/* ---- Sampling ---- */

typedef struct sampling {
    double temperature;
    int top_k;
    double top_p;
} sampling;

/* top-k beyond 256 and a flat top-p need the whole row gathered. */
static const sampling SAMPLINGS[] = {{1, 0, 0},    {0.7, 50, 0.9}, {1.5, 0, 0.95}, {1, 1, 0},   {1, 300, 0},
                                     {8, 0, 0.99}, {2, 256, 0.8},  {0.3, 5, 0},    {1, 4096, 0}};
enum { SEEDS = 2, SAMPLED = COUNT(SAMPLINGS) * SEEDS };

static void fill_sampled(job jobs[SAMPLED]) {
    for (size_t i = 0; i < SAMPLED; i++) {
        const sampling *s = &SAMPLINGS[i / SEEDS];
        jobs[i] = (job){.text = "Once upon a time",
                        .max_tokens = sanitized() ? 6 : 24,
                        .temperature = s->temperature,
                        .top_k = s->top_k,
                        .top_p = s->top_p,
                        .seed = 7 + i % SEEDS};
    }
}

static void sampled_text_is_the_same(void **state) {
    (void)state;
    ls_model *model = demo_model();
    job alone[SAMPLED], jobs[SAMPLED];
    fill_sampled(alone);
    run_variant(model, LS_BF16, LS_AUTO, &PLAIN, alone, SAMPLED);
    size_t n_same = 0;
    for (size_t i = 0; i < SAMPLED; i += SEEDS) {
        bool same = memcmp(alone[i].token, alone[i + 1].token, (size_t)alone[i].n_token * sizeof(int32_t)) == 0;
        n_same += same;
        assert_true(same || SAMPLINGS[i / SEEDS].top_k != 1); /* top-k 1 leaves nothing to draw */
    }
    assert_true(n_same <= COUNT(SAMPLINGS) / 2); /* top-k 1, and perhaps the coldest ones */
    static const variant others[] = {
        {.what = "2 ranks", .params = PARAMS(.tensor_parallel_size = 2, .threads = 1)},
        {.what = "batch", .params = PARAMS(.threads = 2)},
        {.what = "8 ranks", .params = PARAMS(.tensor_parallel_size = 8, .threads = 1)},
        {.what = "4 ranks", .params = PARAMS(.tensor_parallel_size = 4, .threads = 1)},
    };
    for (size_t v = 0; v < (sanitized() ? 1 : COUNT(others)); v++) {
        fill_sampled(jobs);
        run_variant(model, LS_BF16, LS_AUTO, &others[v], jobs, SAMPLED);
        compare_all("sampled", LS_BF16, others[v].what, alone, jobs, SAMPLED);
        jobs_clear(jobs, SAMPLED);
    }
    jobs_clear(alone, SAMPLED);
    ls_model_close(&model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_cases_in_every_variant),    cmocka_unit_test(demo_in_every_variant),
        cmocka_unit_test(neighbours_come_and_go),           cmocka_unit_test(preempted_text_is_the_same),
        cmocka_unit_test(prompt_logits_survive_preemption), cmocka_unit_test(sampled_text_is_the_same),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
