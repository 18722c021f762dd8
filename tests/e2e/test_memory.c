/*
 * Memory: the plan equals what the arenas gave out, tag by tag, for every rank and the host; the large parts also follow
 * from formulas written down here a second time; the KV cache's defaults; impossible plans are refused with sizes; and no
 * step allocates (malloc and its kin are replaced by counting ones here, except under sanitizers).
 */
#include <stdatomic.h>
#include <unistd.h>

#include "e2e.h"

#include "engine/engine.h"

/* ---- A malloc that counts ---- */

static atomic_bool counting;
static atomic_int n_allocations;

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && defined(__GLIBC__) && !defined(__clang__)
enum { CAN_COUNT = 1 };

void *__libc_malloc(size_t n);
void *__libc_calloc(size_t count, size_t n);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t alignment, size_t n);

static void count(void) {
    if (atomic_load(&counting)) {
        atomic_fetch_add(&n_allocations, 1);
    }
}

void *malloc(size_t n) {
    count();
    return __libc_malloc(n);
}

void *calloc(size_t n_items, size_t n) {
    count();
    return __libc_calloc(n_items, n);
}

void *realloc(void *p, size_t n) {
    count();
    return __libc_realloc(p, n);
}

void *aligned_alloc(size_t alignment, size_t n) {
    count();
    return __libc_memalign(alignment, n);
}
#else
enum { CAN_COUNT = 0 };
#endif

/* ---- Formulas ---- */

static int64_t align64(int64_t bytes) {
    return (bytes + 63) / 64 * 64;
}

/* Elements of n that rank r of R holds: its eighths, borders rounded up to 16. */
static int64_t share(int64_t n, int r, int n_ranks) {
    int64_t border[2];
    for (int i = 0; i < 2; i++) {
        int64_t eighth = (r + i) * (8 / n_ranks);
        border[i] = (n * eighth + 127) / 128 * 16;
        border[i] = border[i] < n ? border[i] : n;
    }
    return border[1] - border[0];
}

static int64_t kv_heads(const ls_spec *spec, int n_ranks) {
    return spec->n_kv_heads > n_ranks ? spec->n_kv_heads / n_ranks : 1;
}

/* Bytes of a rank's part of a matrix; int8: with a scale for each row and leaf, in a piece of its own. */
static int64_t matrix(int64_t rows, int64_t cols, int64_t e, int leaves) {
    return align64(rows * cols * e) + (e == 1 ? align64(rows * leaves * 4) : 0);
}

/* Bytes of all parameters of a rank, each rounded up to 64: from the shapes of the Hugging Face modules. */
static int64_t weight_formula(const ls_spec *spec, ls_dtype dtype, bool int8, int r, int n_ranks) {
    int64_t e = int8 ? 1 : dtype == LS_F32 ? 4 : 2, D = spec->d_model, d = spec->d_head;
    int64_t q = spec->n_heads / n_ranks * d, kv = kv_heads(spec, n_ranks) * d;
    int64_t out_columns = share((int64_t)spec->n_heads * d, r, n_ranks);
    int64_t f = share(spec->d_ffn, r, n_ranks), v = share(spec->n_vocab, r, n_ranks);
    int64_t layer = 2 * align64(4 * D);                                                                /* norms */
    layer += matrix(share((int64_t)spec->n_heads * d, r, n_ranks), D, e, 8) + 2 * matrix(kv, D, e, 8); /* q k v */
    layer += matrix(D, out_columns, e, 8 / n_ranks);                                                   /* o */
    layer += 2 * matrix(f, D, e, 8) + matrix(D, f, e, 8 / n_ranks); /* gate up down */
    layer += spec->qk_norm ? 2 * align64(4 * d) : 0;
    layer += spec->qkv_bias ? align64(4 * q) + 2 * align64(4 * kv) : 0;
    layer += spec->out_bias ? align64(4 * D) : 0;
    layer += spec->mlp_bias ? 2 * align64(4 * f) + align64(4 * D) : 0;
    return spec->n_layers * layer + align64(4 * D) + (spec->tied ? 1 : 2) * matrix(v, D, e, 8);
}

static void check_formulas(const ls_engine *engine) {
    const ls_spec *spec = &engine->model->spec;
    const engine_config *c = &engine->config;
    int64_t kv = spec->n_layers * (int64_t)c->n_pages * kv_heads(spec, c->n_ranks) * 64 * spec->d_head;
    for (int r = 0; r < c->n_ranks; r++) {
        const size_t *by_tag = engine->rank_arena[r].by_tag;
        assert_int_equal(by_tag[MEM_WEIGHTS],
                         weight_formula(spec, c->dtype, c->quantization != LS_QUANTIZATION_NONE, r, c->n_ranks));
        int64_t f = share(spec->d_ffn, r, c->n_ranks), q = spec->n_heads / c->n_ranks * spec->d_head;
        int64_t longest = f > q ? f : q, kv_cols = 2 * kv_heads(spec, c->n_ranks) * spec->d_head;
        longest = spec->d_model > longest ? spec->d_model : longest;
        int64_t act = 2 * align64(4LL * c->m_max * spec->d_model) + align64(4 * c->m_max * (q + kv_cols)) +
                      align64(4 * c->m_max * q) + align64(4 * c->m_max * f);
        act += c->quantization == LS_QUANTIZATION_W8A8 ? c->m_max * (64 + align64(longest)) : 0;
        assert_int_equal(by_tag[MEM_ACTIVATIONS], act);
        assert_int_equal(by_tag[MEM_KV_CACHE], 2 * align64(kv * (c->kv_dtype == LS_F32 ? 4 : 2)));
        assert_int_equal(by_tag[MEM_EXCHANGE], align64(2LL * c->m_max * spec->d_model * 4));
        const int64_t v = share(spec->n_vocab, r, c->n_ranks), part = (int64_t)sizeof(ls_sample_part);
        assert_int_equal(by_tag[MEM_LOGITS], align64(4 * c->n_out_max * v) + align64(part * c->n_out_max) +
                                                 align64(4 * c->n_threads * v) + align64(part * c->n_threads));
        assert_int_equal(by_tag[MEM_ROPE] + by_tag[MEM_STEP] + by_tag[MEM_SCHEDULER], 0);
    }
    assert_int_equal(engine->host_arena.by_tag[MEM_ROPE], align64(4LL * c->max_len * spec->d_head));
    assert_int_equal(kv_page_bytes(c, spec) * c->n_pages, 2 * kv * (c->kv_dtype == LS_F32 ? 4 : 2) * c->n_ranks);
}

static void check_plan(const ls_engine *engine) {
    ls_memory_plan plan;
    ls_error err = {0};
    const ls_program *const *programs = (const ls_program *const *)engine->program;
    ASSERT_OK(memory_plan_make(&plan, &engine->config, programs, &err), &err);
    size_t total = engine->host_arena.used;
    for (int tag = 0; tag < MEM_TAGS; tag++) {
        assert_int_equal(plan.host[tag], engine->host_arena.by_tag[tag]);
        for (int r = 0; r < LS_MAX_RANKS; r++) {
            assert_int_equal(plan.rank[r][tag], engine->rank_arena[r].by_tag[tag]);
        }
    }
    for (int r = 0; r < LS_MAX_RANKS; r++) {
        total += engine->rank_arena[r].used;
        assert_int_equal(engine->rank_arena[r].used, engine->rank_arena[r].bytes); /* nothing is left over */
    }
    assert_int_equal(plan.total, total);
}

static void check_timeline(ls_engine *engine) {
    ls_timeline line = LS_TIMELINE_INIT;
    ls_error err = {0};
    int64_t weights = 0, kv = 0, all = (int64_t)engine->host_arena.used;
    ASSERT_OK(ls_engine_get_timeline(engine, &line, &err), &err);
    for (int r = 0; r < engine->config.n_ranks; r++) {
        weights += (int64_t)engine->rank_arena[r].by_tag[MEM_WEIGHTS];
        kv += (int64_t)engine->rank_arena[r].by_tag[MEM_KV_CACHE];
        all += (int64_t)engine->rank_arena[r].used;
    }
    assert_int_equal(line.weights_memory_bytes, weights);
    assert_int_equal(line.kv_memory_bytes, kv);
    assert_int_equal(line.other_memory_bytes, all - weights - kv);
    assert_true(line.weight_bytes_per_step > 0 && line.weight_bytes_per_step <= weights);
}

static void plan_equals_arenas(void **state) {
    (void)state;
    static const int RANKS[] = {1, 2, 4, 8};
    static const ls_dtype DTYPES[] = {LS_F32, LS_BF16, LS_F16};
    golden_list list;
    golden_open(&list);
    int n_opened = 0;
    for (size_t i = 0; i < list.n * COUNT(RANKS); i++) {
        const golden_case *c = &list.item[i / COUNT(RANKS)];
        ls_engine_params params = LS_ENGINE_PARAMS_INIT;
        params.tensor_parallel_size = RANKS[i % COUNT(RANKS)];
        params.threads = 1;
        params.dtype = DTYPES[i % COUNT(DTYPES)];
        params.kv_cache_dtype = DTYPES[i / 2 % COUNT(DTYPES)];
        params.max_num_seqs = 1 + (int)i % 5;
        params.max_num_batched_tokens = 7 + (int)i;
        params.max_model_len_tokens = 100;
        params.quantization = (ls_quantization)(i % 5 % 3);
        ls_model *model = golden_model(c);
        if (model->spec.n_heads % params.tensor_parallel_size == 0) {
            ls_engine *engine = engine_open(model, &params);
            check_plan(engine);
            check_formulas(engine);
            if (i % 16 == 0) {
                check_timeline(engine);
            }
            ls_engine_close(&engine);
            n_opened++;
        }
        ls_model_close(&model);
    }
    assert_true(n_opened > 85);
    golden_close(&list);
}

/* ---- The KV cache's size ---- */

/* A llama of width 64 with a large KV cache: 16 layers of 8 heads of 256. */
static void write_wide(const char *folder, int positions) {
    char json[1024];
    int n = snprintf(json, sizeof json,
                     "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": 64, "
                     "\"num_hidden_layers\": 16, \"num_attention_heads\": 8, \"num_key_value_heads\": 8, "
                     "\"head_dim\": 256, \"intermediate_size\": 64, \"vocab_size\": 64, \"rms_norm_eps\": 1e-6, "
                     "\"hidden_act\": \"silu\", \"max_position_embeddings\": %d, \"rope_theta\": 10000.0, "
                     "\"tie_word_embeddings\": true, \"torch_dtype\": \"float32\"}",
                     positions);
    file_write(folder, "config.json", json, (size_t)n);
}

static void assert_pages(ls_model *model, int max_len, int max_seqs, int64_t bytes, int64_t n_pages) {
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    params.threads = 1;
    params.max_model_len_tokens = max_len;
    params.max_num_seqs = max_seqs;
    params.kv_cache_memory_bytes = bytes;
    ls_engine *engine = engine_open(model, &params);
    assert_int_equal(engine->config.n_pages, n_pages);
    assert_int_equal(engine->pages.n_free, n_pages);
    ls_engine_close(&engine);
}

static void kv_cache_defaults(void **state) {
    (void)state;
    char folder[PATH_BYTES];
    folder_make(folder);
    write_wide(folder, 32768);
    ls_model *model = model_open(folder, LS_LOAD_DUMMY);
    const int64_t page = 2LL * 16 * 8 * 64 * 256 * 4; /* 16 MiB */
    assert_pages(model, 64, 16, 0, 16);               /* all seats at full length */
    assert_pages(model, 65, 3, 0, 6);                 /* a page more for a token more */
    assert_pages(model, 1, 0, 0, 16);                 /* 16 seats unless told */
    assert_pages(model, 1024, 15, 0, 240);
    assert_pages(model, 1024, 17, 0, 256); /* at most 4 GiB */
    assert_pages(model, 32768, 1, 0, 512); /* but one sequence always fits: 8 GiB */
    assert_pages(model, 32768, 2, 0, 512);
    assert_pages(model, 1024, 16, 10 * page, 10); /* as told */
    assert_pages(model, 1024, 16, 11 * page - 1, 10);
    assert_pages(model, 1024, 16, page, 1);    /* less than a whole sequence is allowed */
    assert_pages(model, 64, 4, 100 * page, 4); /* no more than can be used */
    assert_pages(model, 0, 16, 0, 256);        /* a context that was not asked for is what 4 GiB hold */
    assert_pages(model, 0, 16, 3 * page, 3);
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    ls_error err = {0};
    params.kv_cache_memory_bytes = 3 * page;
    ls_engine *engine = engine_open(model, &params);
    assert_int_equal(engine->config.max_len, 3 * 64);
    ls_engine_close(&engine);
    params.kv_cache_memory_bytes = page - 1;
    ASSERT_FAILS(ls_engine_open(model, &params, &engine, &err), &err, LS_EINVAL, "--kv-cache-memory-bytes", "16777215",
                 "16777216");
    ls_model_close(&model);
    folder_remove(folder);
}

static void impossible_plans_say_need_and_have(void **state) {
    (void)state;
    char folder[PATH_BYTES], have[64];
    ls_error err = {0};
    ls_engine *engine = NULL;
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    folder_make(folder);
    write_wide(folder, 1 << 24); /* one sequence: 4 TiB */
    params.max_model_len_tokens = 1 << 24;
    ls_model *model = model_open(folder, LS_LOAD_DUMMY);
    snprintf(have, sizeof have, "the machine has %.2f GB",
             (double)sysconf(_SC_PHYS_PAGES) * (double)sysconf(_SC_PAGESIZE) / 1e9);
    ASSERT_FAILS(ls_engine_open(model, &params, &engine, &err), &err, LS_ENOMEM, "KV cache 4398.05", have,
                 "--max-model-len");
    params.kv_cache_memory_bytes = (int64_t)1 << 50; /* asked for: 16 sequences, 64 TiB */
    ASSERT_FAILS(ls_engine_open(model, &params, &engine, &err), &err, LS_ENOMEM, "KV cache 70368.74", have,
                 "--kv-cache-memory-bytes");
    assert_null(engine);
    ls_model_close(&model);
    folder_remove(folder);
}

/* ---- Steps allocate nothing ---- */

static void on_text(void *user, ls_request *request, int32_t token, const char *text, size_t text_bytes) {
    (void)request, (void)token, (void)text;
    *(size_t *)user += text_bytes;
}

static void on_logits(void *user, ls_request *request, int position, const float *logits, int n_vocab) {
    (void)user, (void)request, (void)position, (void)logits, (void)n_vocab;
}

static void count_steps(int n_ranks, int n_threads, int64_t kv_bytes) {
    enum { N = 5, STEPS = 90 };
    static const char *const texts[N] = {"Once upon a time", "The", "日本語のお話です。", "One day, a small bird", "a"};
    ls_model *model = demo_model();
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    params.tensor_parallel_size = n_ranks;
    params.threads = n_threads;
    params.max_model_len_tokens = 192;
    params.kv_cache_memory_bytes = kv_bytes;
    ls_engine *engine = engine_open(model, &params);
    ls_request *request[N];
    size_t n_text = 0;
    ls_error err = {0};
    for (int i = 0; i < N; i++) {
        ls_request_params p = LS_REQUEST_PARAMS_INIT;
        p.prompt = texts[i];
        p.prompt_bytes = strlen(texts[i]);
        p.max_tokens = 120;
        p.temperature = i;
        p.top_k = i == 3 ? 300 : 0;
        p.top_p = i == 4 ? 0.99 : 1;
        p.ignore_eos = i != 2;
        p.hash_logits = true;
        p.prompt_logits = i == 1;
        p.on_text = on_text;
        p.on_logits = on_logits;
        p.user = &n_text;
        ASSERT_OK(ls_request_submit(engine, &p, &request[i], &err), &err);
    }
    atomic_store(&n_allocations, 0);
    atomic_store(&counting, true);
    ls_status st = LS_OK;
    for (int step = 0; step < STEPS && st == LS_OK; step++) {
        st = ls_engine_step(engine, &err);
    }
    atomic_store(&counting, false);
    assert_int_equal(st, LS_OK);
    assert_int_equal(atomic_load(&n_allocations), 0);
    assert_true(n_text > 500 && engine->stats.decode_steps >= 50);
    assert_true((engine->stats.preemptions > 0) == (kv_bytes > 0));
    ls_engine_close(&engine);
    ls_model_close(&model);
}

static void steps_do_not_allocate(void **state) {
    (void)state;
    if (!CAN_COUNT || sanitized()) {
        skip();
    }
    atomic_store(&counting, true);
    void *volatile seen = malloc(1);
    atomic_store(&counting, false);
    free(seen);
    assert_int_equal(atomic_exchange(&n_allocations, 0), 1); /* the count works */
    count_steps(1, 1, 0);
    count_steps(2, 2, 0);
    count_steps(1, 2, 6 * 524288LL); /* 6 pages: with preemption */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plan_equals_arenas),
        cmocka_unit_test(kv_cache_defaults),
        cmocka_unit_test(impossible_plans_say_need_and_have),
        cmocka_unit_test(steps_do_not_allocate),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
