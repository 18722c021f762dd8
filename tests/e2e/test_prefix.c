/*
 * The prefix cache, priorities and fair prompts, on whole engines: the logits behind every token have the bits that each
 * request has alone, whatever it shares, and the order is the one that was asked for.
 */
#include "e2e.h"

enum { PAGE = 64, V = 4000 };

/* Tokens that differ by `kind` from `from` on. */
static void make_prompt(int32_t *id, int n, int from, int kind) {
    for (int i = 0; i < n; i++) {
        id[i] = 300 + (i * 7 + (i >= from ? kind * 131 : 0)) % (V - 300);
    }
}

static ls_request *submit(ls_engine *engine, const int32_t *id, int n, int max_tokens, int priority) {
    ls_request_params params = LS_REQUEST_PARAMS_INIT;
    ls_request *request = NULL;
    ls_error err = {0};
    params.prompt_tokens = id;
    params.n_prompt_tokens = (size_t)n;
    params.max_tokens = max_tokens;
    params.temperature = 0;
    params.ignore_eos = params.hash_logits = true;
    params.priority = priority;
    ASSERT_OK(ls_request_submit(engine, &params, &request, &err), &err);
    return request;
}

static void run_all(ls_engine *engine) {
    ls_error err = {0};
    ls_status st = LS_OK;
    while (st == LS_OK) {
        st = ls_engine_step(engine, &err);
    }
    assert_int_equal(st, LS_IDLE);
}

static uint64_t hash_alone(ls_engine *engine, const int32_t *id, int n, int max_tokens) {
    ls_request *request = submit(engine, id, n, max_tokens, 0);
    run_all(engine);
    uint64_t hash = result_of(request).logits_hash;
    ls_request_free(&request);
    return hash;
}

static ls_engine_stats stats_of(ls_engine *engine) {
    ls_engine_stats stats = LS_ENGINE_STATS_INIT;
    ls_error err = {0};
    ASSERT_OK(ls_engine_get_stats(engine, &stats, &err), &err);
    return stats;
}

/* How much of a prompt is taken from the cache, and that its bits do not change. */
static void expect_reused(ls_engine *cached, ls_engine *plain, const int32_t *id, int n, size_t n_reused) {
    ls_request *request = submit(cached, id, n, 5, 0);
    run_all(cached);
    assert_int_equal(result_of(request).n_reused_tokens, n_reused);
    assert_true(result_of(request).logits_hash == hash_alone(plain, id, n, 5));
    ls_request_free(&request);
}

static void same_bits(void **state) {
    (void)state;
    enum { N = 4 * PAGE + 10 };
    ls_model *model = demo_model();
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    params.max_model_len_tokens = 512;
    params.max_num_seqs = 4;
    ls_engine *plain = engine_open(model, &params);
    params.prefix_cache = true;
    ls_engine *cached = engine_open(model, &params);
    int32_t id[N];
    make_prompt(id, N, N, 0);
    expect_reused(cached, plain, id, N, 0);
    expect_reused(cached, plain, id, N, 4 * PAGE);
    expect_reused(cached, plain, id, 4 * PAGE, 3 * PAGE); /* the last token is computed in any case */
    expect_reused(cached, plain, id, 4 * PAGE + 1, 4 * PAGE);
    expect_reused(cached, plain, id, PAGE, 0);
    make_prompt(id, N, 2 * PAGE + 5, 1);
    expect_reused(cached, plain, id, N, 2 * PAGE);
    make_prompt(id, N, 0, 2);
    expect_reused(cached, plain, id, N, 0);
    ls_engine_stats stats = stats_of(cached);
    assert_int_equal(stats.n_free_pages, stats.n_pages);
    assert_int_equal(stats.prefix_hit_tokens, 4 * PAGE + 3 * PAGE + 4 * PAGE + 2 * PAGE);
    assert_int_equal(stats.prefix_query_tokens, 4 * N + 4 * PAGE + 4 * PAGE + 1 + PAGE);
    ls_engine_close(&cached);
    ls_engine_close(&plain);
    ls_model_close(&model);
}

/* What was generated serves the next turn of a conversation. */
static void answers_are_cached(void **state) {
    (void)state;
    enum { N = 40, ANSWER = 120, NEXT = N + ANSWER };
    ls_model *model = demo_model();
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    params.max_model_len_tokens = 512;
    ls_engine *plain = engine_open(model, &params);
    params.prefix_cache = true;
    ls_engine *cached = engine_open(model, &params);
    int32_t id[NEXT];
    make_prompt(id, N, N, 0);
    ls_request *first = submit(cached, id, N, ANSWER, 0);
    run_all(cached);
    memcpy(id, result_of(first).tokens, sizeof id);
    ls_request_free(&first);
    expect_reused(cached, plain, id, NEXT, 2 * PAGE);
    ls_engine_close(&cached);
    ls_engine_close(&plain);
    ls_model_close(&model);
}

/* More than fits: pages are forgotten, shared, preempted and found again, and nobody's bits change. */
static void under_pressure(void **state) {
    (void)state;
    enum { N = 3 * PAGE, REQUESTS = 40, ANSWER = 80 };
    ls_model *model = demo_model();
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    params.max_model_len_tokens = N + ANSWER;
    params.max_num_seqs = 6;
    params.max_num_batched_tokens = 100;
    params.kv_cache_memory_bytes = (int64_t)12 * PAGE * 8 * 2 * 4 * 64 * 2; /* 12 pages of the demo model, bf16 */
    ls_engine *plain = engine_open(model, &params);
    params.prefix_cache = true;
    ls_engine *cached = engine_open(model, &params);
    int32_t id[5][N];
    uint64_t hash[5];
    ls_request *request[REQUESTS];
    const int n_requests = sanitized() ? 8 : REQUESTS;
    for (int k = 0; k < 5; k++) {
        make_prompt(id[k], N, k * PAGE / 2, k);
        hash[k] = hash_alone(plain, id[k], N, ANSWER);
    }
    for (int i = 0; i < n_requests; i++) {
        request[i] = submit(cached, id[i * 7 % 5], N, ANSWER, i % 3);
    }
    run_all(cached);
    for (int i = 0; i < n_requests; i++) {
        assert_int_equal(result_of(request[i]).finish, LS_FINISH_LENGTH);
        assert_true(result_of(request[i]).logits_hash == hash[i * 7 % 5]);
        ls_request_free(&request[i]);
    }
    ls_engine_stats stats = stats_of(cached);
    assert_int_equal(stats.n_free_pages, stats.n_pages);
    assert_true(stats.prefix_hit_tokens > 0);
    assert_true(stats.preemptions > 0);
    ls_engine_close(&cached);
    ls_engine_close(&plain);
    ls_model_close(&model);
}

/* KV reuse by name beside the cache: the page that a conversation leaves half used is not written over while others read. */
static void beside_reuse(void **state) {
    (void)state;
    enum { N = 3 * PAGE + 20 };
    ls_model *model = demo_model();
    ls_engine_params engine_params = LS_ENGINE_PARAMS_INIT;
    engine_params.max_model_len_tokens = 512;
    ls_engine *plain = engine_open(model, &engine_params);
    engine_params.prefix_cache = true;
    ls_engine *cached = engine_open(model, &engine_params);
    int32_t id[N], turned[N];
    ls_error err = {0};
    make_prompt(id, N, N, 0);
    make_prompt(turned, N, PAGE + 30, 1); /* leaves it in the middle of the second page */
    for (int shared = 0; shared < 2; shared++) {
        ls_request_params params = LS_REQUEST_PARAMS_INIT;
        ls_request *kept = NULL, *next = NULL;
        params.prompt_tokens = id;
        params.n_prompt_tokens = N;
        params.max_tokens = 3;
        params.temperature = 0;
        params.keep_cache = params.ignore_eos = params.hash_logits = true;
        ASSERT_OK(ls_request_submit(cached, &params, &kept, &err), &err);
        run_all(cached);
        ls_request *reader = shared ? submit(cached, id, N, 30, 0) : NULL;
        if (shared) {
            ASSERT_OK(ls_engine_step(cached, &err), &err); /* it has the pages now */
        }
        params.prompt_tokens = turned;
        params.reuse = kept;
        ASSERT_OK(ls_request_submit(cached, &params, &next, &err), &err);
        run_all(cached);
        assert_int_equal(result_of(next).n_reused_tokens, shared ? PAGE : PAGE + 30);
        assert_true(result_of(next).logits_hash == hash_alone(plain, turned, N, 3));
        if (shared) {
            assert_true(result_of(reader).logits_hash == hash_alone(plain, id, N, 30));
        }
        ls_request_free(&kept);
        ls_request_free(&next);
        ls_request_free(&reader);
    }
    ls_engine_close(&cached);
    ls_engine_close(&plain);
    ls_model_close(&model);
}

/* ---- Order ---- */

static void priorities(void **state) {
    (void)state;
    enum { N = 6 };
    static const int priority[N] = {5, 0, -3, 5, 0, -3};
    static const int expected[N] = {2, 5, 1, 4, 0, 3};
    ls_model *model = demo_model();
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    params.max_model_len_tokens = 128;
    params.max_num_seqs = 1;
    ls_engine *engine = engine_open(model, &params);
    ls_request *request[N];
    int32_t id[10];
    ls_error err = {0};
    int n_ended = 0;
    make_prompt(id, 10, 10, 0);
    for (int i = 0; i < N; i++) {
        request[i] = submit(engine, id, 10, 2, priority[i]);
    }
    while (ls_engine_step(engine, &err) == LS_OK) {
        if (n_ended < N && result_of(request[expected[n_ended]]).finish == LS_FINISH_LENGTH) {
            n_ended++;
        }
        for (int i = n_ended; i < N; i++) {
            assert_int_equal(result_of(request[expected[i]]).finish, LS_FINISH_NONE);
        }
    }
    assert_int_equal(n_ended, N);
    ls_engine_close(&engine);
    ls_model_close(&model);
}

/* Out of pages, the less important one is set aside, though it was there first. */
static void preempts_by_priority(void **state) {
    (void)state;
    ls_model *model = demo_model();
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    params.max_model_len_tokens = 3 * PAGE;
    params.max_num_seqs = 2;
    params.kv_cache_memory_bytes = (int64_t)3 * PAGE * 8 * 2 * 4 * 64 * 2;
    ls_engine *engine = engine_open(model, &params);
    int32_t id[60];
    make_prompt(id, 60, 60, 0);
    ls_request *low = submit(engine, id, 60, 100, 1), *high = submit(engine, id, 60, 100, 0);
    run_all(engine);
    assert_int_equal(result_of(high).preemptions, 0);
    assert_true(result_of(low).preemptions > 0);
    assert_true(result_of(low).logits_hash == result_of(high).logits_hash);
    ls_engine_close(&engine);
    ls_model_close(&model);
}

/* A long prompt that came first: a short one has its first token long before the long one is through, and running ones a
 * token each step. */
static void long_prompts_do_not_stop_others(void **state) {
    (void)state;
    enum { LONG = 1500, CHUNK = 100, SHORT = 20 };
    ls_model *model = demo_model();
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    params.max_num_seqs = 4;
    params.max_num_batched_tokens = CHUNK;
    ls_engine *engine = engine_open(model, &params);
    int32_t id[LONG];
    ls_error err = {0};
    make_prompt(id, LONG, LONG, 0);
    ls_request *running = submit(engine, id, SHORT, 200, 0);
    ASSERT_OK(ls_engine_step(engine, &err), &err);
    ls_request *long_one = submit(engine, id, LONG, 1, 0), *short_one = NULL;
    for (int i = 0; i < 12; i++) {
        size_t before = result_of(running).n_tokens;
        if (i == 2) {
            short_one = submit(engine, id + 7, SHORT, 5, 0);
        }
        ASSERT_OK(ls_engine_step(engine, &err), &err);
        assert_int_equal(result_of(running).n_tokens, before + 1);
    }
    assert_int_equal(result_of(short_one).finish, LS_FINISH_LENGTH);
    assert_int_equal(result_of(long_one).finish, LS_FINISH_NONE);
    ls_engine_close(&engine);
    ls_model_close(&model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_bits),
        cmocka_unit_test(answers_are_cached),
        cmocka_unit_test(under_pressure),
        cmocka_unit_test(beside_reuse),
        cmocka_unit_test(priorities),
        cmocka_unit_test(preempts_by_priority),
        cmocka_unit_test(long_prompts_do_not_stop_others),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
