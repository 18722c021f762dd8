/*
 * An engine under load: a thread of its own, requests that come, go, wait, stop and are cancelled while few pages and
 * seats are there, KV reuse from turn to turn, several engines at once. What comes out is what each request gives alone.
 * All of it also one step behind (delayed.h).
 */
#include "delayed.h"

#include <poll.h>
#include <pthread.h>
#include <unistd.h>

#include "engine/engine.h"

typedef struct prng {
    uint64_t state;
} prng;

static uint64_t next_u64(prng *r) {
    uint64_t z = r->state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

static int below(prng *r, int n) {
    return (int)(next_u64(r) % (uint64_t)n);
}

/* A checkpoint with a tokenizer that writes printable characters. */
static golden_case *checkpoint(golden_list *list) {
    golden_open(list);
    for (size_t i = 0; i < list->n; i++) {
        if (strcmp(list->item[i].name, "ckpt_f32") == 0) {
            return &list->item[i];
        }
    }
    fail_msg("tests/golden/ckpt_f32 is not there");
    return NULL;
}

/* ---- 1,000 requests ---- */

enum { MAX_PROMPT = 60, MAX_ANSWER = 40 };

typedef struct load_request {
    int32_t prompt[MAX_PROMPT];
    ls_request_params params;
    const char *stop[2];
    int32_t stop_token;
    ls_logit_bias bias;
    ls_request *request;
    /* Alone. */
    int32_t token[MAX_PROMPT + MAX_ANSWER];
    size_t n_tokens;
    uint64_t hash;
    ls_finish finish;
    char text[1024];
    int cancel_after; /* tokens; 0: never */
} load_request;

/* plain: every other fifty of them leave the drawing to the device. */
static void make_load(load_request *load, int n, int n_vocab, bool plain) {
    prng r = {20261122};
    for (int i = 0; i < n; i++) {
        load_request *l = &load[i];
        ls_request_params *p = &l->params;
        *p = (ls_request_params)LS_REQUEST_PARAMS_INIT;
        p->n_prompt_tokens = (size_t)(1 + below(&r, i % 3 == 0 ? MAX_PROMPT : 12));
        for (size_t j = 0; j < p->n_prompt_tokens; j++) {
            l->prompt[j] = below(&r, n_vocab);
        }
        p->prompt_tokens = l->prompt;
        p->max_tokens = below(&r, i % 2 == 0 ? MAX_ANSWER : 12);
        p->temperature = i % 3 == 0 ? 0 : 0.8;
        p->top_k = i % 4 == 0 ? 20 : 0;
        p->top_p = i % 5 == 0 ? 0.9 : 1;
        p->min_p = i % 6 == 0 ? 0.02 : 0;
        p->repetition_penalty = i % 8 == 0 ? 1.2 : 1;
        p->frequency_penalty = i % 9 == 0 ? 0.3 : 0;
        p->seed = next_u64(&r);
        p->choice = (uint32_t)(i % 3);
        p->hash_logits = true;
        p->ignore_eos = i % 2 == 0;
        l->stop[0] = "a";
        l->stop[1] = "bc";
        p->stop = l->stop;
        p->n_stop = i % 11 == 0 ? 2 : 0;
        l->stop_token = below(&r, n_vocab);
        p->stop_tokens = &l->stop_token;
        p->n_stop_tokens = i % 13 == 0 ? 1 : 0;
        l->bias = (ls_logit_bias){below(&r, n_vocab), 1.5F};
        p->logit_bias = &l->bias;
        p->n_logit_bias = i % 17 == 0 ? 1 : 0;
        p->logprobs = i % 19 == 0 ? 3 : -1;
        p->prompt_logprobs = i % 23 == 0 ? 0 : -1;
        l->cancel_after = i % 29 == 28 ? 1 + below(&r, 4) : 0;
        if (plain && i / 50 % 2 == 0) {
            p->top_k = 0;
            p->top_p = p->repetition_penalty = 1;
            p->min_p = p->frequency_penalty = 0;
            p->logprobs = p->prompt_logprobs = -1;
            p->n_logit_bias = 0;
            p->hash_logits = false;
        }
    }
}

static void run_alone(ls_engine *engine, load_request *l) {
    ls_error err = {0};
    ls_result result = LS_RESULT_INIT;
    ls_request *request = NULL;
    ASSERT_OK(ls_request_submit(engine, &l->params, &request, &err), &err);
    while (ls_engine_step(engine, &err) == LS_OK) {
    }
    ASSERT_OK(ls_request_get_result(request, &result, &err), &err);
    assert_true(result.finish == LS_FINISH_LENGTH || result.finish == LS_FINISH_STOP);
    assert_true(result.n_tokens <= COUNT(l->token) && result.text_bytes < sizeof l->text);
    memcpy(l->token, result.tokens, result.n_tokens * sizeof *l->token);
    memcpy(l->text, result.text, result.text_bytes + 1);
    l->n_tokens = result.n_tokens;
    l->hash = result.logits_hash;
    l->finish = result.finish;
    ls_request_free(&request);
}

/* Checks a finished request against the run alone; a cancelled one as far as it came. */
static void check_load(load_request *l, int *n_cancelled, int *n_preempted) {
    ls_result result = LS_RESULT_INIT;
    ls_error err = {0};
    ASSERT_OK(ls_request_get_result(l->request, &result, &err), &err);
    assert_true(result.n_tokens <= l->n_tokens);
    assert_memory_equal(result.tokens, l->token, result.n_tokens * sizeof *l->token);
    assert_true(result.total_us >= 0 && (result.queued_us < 0 || result.queued_us <= result.total_us));
    *n_preempted += result.preemptions > 0;
    if (result.finish == LS_FINISH_CANCELLED) {
        assert_true(l->cancel_after > 0);
        assert_int_equal(strncmp(result.text, l->text, result.text_bytes), 0);
        (*n_cancelled)++;
    } else {
        assert_int_equal(result.finish, l->finish);
        assert_int_equal(result.n_tokens, l->n_tokens);
        assert_true(result.logits_hash == l->hash);
        assert_string_equal(result.text, l->text);
    }
    ls_request_free(&l->request);
}

typedef struct load_run {
    ls_engine *engine;
    load_request *load;
    int n;
} load_run;

/* Submits from another thread than the one that polls, in bursts. */
static void *submit_all(void *arg) {
    load_run *run = arg;
    prng r = {7};
    for (int i = 0; i < run->n; i++) {
        ls_error err = {0};
        ls_request *request = NULL;
        run->load[i].params.user = &run->load[i];
        if (ls_request_submit(run->engine, &run->load[i].params, &request, &err) != LS_OK) {
            print_error("%s\n", err.text);
            return "a request was refused";
        }
        if (below(&r, 10) == 0) {
            usleep((useconds_t)below(&r, 3000));
        }
    }
    return NULL;
}

static load_request *owner(load_run *run, ls_request *request) {
    load_request *l = request->params.user;
    assert_true(l >= run->load && l < run->load + run->n);
    l->request = request;
    return l;
}

/* Polls until all are finished. Returns how many times a request was told of. */
static int poll_all(load_run *run, int *n_cancelled, int *n_preempted) {
    int n_finished = 0, n_told = 0;
    while (n_finished < run->n) {
        ls_request *news[5];
        ls_error err = {0};
        size_t n = 0;
        ASSERT_OK(ls_engine_poll(run->engine, 60000000, news, COUNT(news), &n, &err), &err);
        assert_true(n > 0);
        for (size_t i = 0; i < n; i++) {
            load_request *l = owner(run, news[i]);
            ls_result result = LS_RESULT_INIT;
            ASSERT_OK(ls_request_get_result(news[i], &result, &err), &err);
            n_told++;
            if (result.finish != LS_FINISH_NONE) {
                check_load(l, n_cancelled, n_preempted);
                n_finished++;
            } else if (l->cancel_after > 0 && result.n_tokens >= result.n_prompt_tokens + (size_t)l->cancel_after) {
                ls_request_cancel(news[i]);
            }
        }
    }
    return n_told;
}

typedef ls_engine *(*open_fn)(ls_model *model, const ls_engine_params *params);

static void run_load(open_fn open_crowded, int n, bool plain) {
    golden_list list;
    golden_case *c = checkpoint(&list);
    ls_model *model = golden_model(c);
    load_request *load = calloc((size_t)n, sizeof *load);
    assert_non_null(load);
    make_load(load, n, c->n_vocab, plain);
    ls_engine_params alone = LS_ENGINE_PARAMS_INIT, crowded = LS_ENGINE_PARAMS_INIT;
    alone.threads = crowded.threads = 1;
    alone.max_num_seqs = 1;
    ls_engine *engine = engine_open(model, &alone);
    for (int i = 0; i < n; i++) {
        run_alone(engine, &load[i]);
    }
    int64_t page_bytes = kv_page_bytes(&engine->config, &model->spec);
    ls_engine_close(&engine);

    crowded.tensor_parallel_size = 2;
    crowded.max_num_seqs = 7;
    crowded.max_num_batched_tokens = 24;
    crowded.kv_cache_memory_bytes = 4 * page_bytes;
    engine = open_crowded(model, &crowded);
    load_run run = {engine, load, n};
    ls_error err = {0};
    ASSERT_OK(ls_engine_start(engine, &err), &err);
    pthread_t submitter;
    assert_int_equal(pthread_create(&submitter, NULL, submit_all, &run), 0);
    int n_cancelled = 0, n_preempted = 0;
    int n_told = poll_all(&run, &n_cancelled, &n_preempted);
    void *complaint = NULL;
    pthread_join(submitter, &complaint);
    assert_null(complaint);
    ls_engine_stats stats = LS_ENGINE_STATS_INIT;
    ASSERT_OK(ls_engine_get_stats(engine, &stats, &err), &err);
    print_message(
        "%d requests, %lld steps, %lld of them ahead, told %d times, %d preempted (%lld times), %d cancelled\n", n,
        (long long)stats.steps, (long long)engine->stats.ahead_steps, n_told, n_preempted, (long long)stats.preemptions,
        n_cancelled);
    assert_int_equal(stats.finished, n);
    assert_int_equal(stats.cancelled, n_cancelled);
    assert_int_equal(stats.failed, 0);
    assert_int_equal(stats.n_running + stats.n_waiting, 0);
    assert_int_equal(stats.n_free_pages, stats.n_pages);
    assert_true(n_cancelled > 0 && (n_preempted > 0 || sanitized()));
    assert_true(plain ? engine->stats.ahead_steps > stats.steps / 10 : engine->stats.ahead_steps == 0);
    ls_engine_close(&engine);
    free(load);
    ls_model_close(&model);
    golden_close(&list);
}

static void thousand_requests(void **state) {
    (void)state;
    run_load(engine_open, sanitized() ? 150 : 1000, false);
}

static void one_step_behind(void **state) {
    (void)state;
    run_load(delayed_engine_open, sanitized() ? 150 : 1000, true);
}

/* ---- A thread of its own ---- */

static ls_request *submit_text(ls_engine *engine, const char *text, int max_tokens) {
    ls_request_params params = LS_REQUEST_PARAMS_INIT;
    ls_request *request = NULL;
    ls_error err = {0};
    params.prompt = text;
    params.prompt_bytes = strlen(text);
    params.max_tokens = max_tokens;
    params.temperature = 0;
    params.ignore_eos = true;
    ASSERT_OK(ls_request_submit(engine, &params, &request, &err), &err);
    return request;
}

/* Polls until this one request is finished. */
static void wait_for(ls_engine *engine, ls_request *request) {
    while (result_of(request).finish == LS_FINISH_NONE) {
        ls_request *news;
        ls_error err = {0};
        size_t n = 0;
        ASSERT_OK(ls_engine_poll(engine, 60000000, &news, 1, &n, &err), &err);
        assert_int_equal(n, 1);
    }
}

static bool readable(int fd) {
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    return poll(&wait, 1, 0) == 1;
}

static void rules_of_the_thread(void **state) {
    (void)state;
    ls_model *model = demo_model();
    ls_engine *engine = engine_open(model, &(ls_engine_params)LS_ENGINE_PARAMS_INIT);
    ls_request *news = NULL;
    ls_error err = {0};
    size_t n = 7;
    ASSERT_FAILS(ls_engine_poll(engine, 0, &news, 1, &n, &err), &err, LS_EINVAL, "ls_engine_start");
    assert_int_equal(ls_engine_poll_fd(engine), -1);
    ls_engine_stop(engine); /* nothing to stop */
    ASSERT_OK(ls_engine_start(engine, &err), &err);
    ASSERT_FAILS(ls_engine_start(engine, &err), &err, LS_EINVAL, "runs already");
    ASSERT_FAILS(ls_engine_step(engine, &err), &err, LS_EINVAL, "ls_engine_stop");
    ASSERT_OK(ls_engine_poll(engine, 1000, &news, 1, &n, &err), &err);
    assert_int_equal(n, 0); /* the timeout */
    int fd = ls_engine_poll_fd(engine);
    assert_false(readable(fd));

    ls_request *request = submit_text(engine, "Once upon a time", 20);
    wait_for(engine, request);
    ls_result result = result_of(request);
    assert_int_equal(result.n_tokens, result.n_prompt_tokens + 20);
    assert_true(result.queued_us >= 0 && result.first_token_us >= result.queued_us);
    assert_true(result.total_us >= result.first_token_us);
    int64_t total_us = result.total_us;
    assert_true(result_of(request).total_us == total_us); /* it has ended */
    /* A request with news that is freed is not told of. */
    ls_request *other = submit_text(engine, "The", 3);
    while (result_of(other).finish == LS_FINISH_NONE) {
        usleep(1000);
    }
    assert_true(readable(fd));
    ls_request_free(&other);
    ASSERT_OK(ls_engine_poll(engine, 0, &news, 1, &n, &err), &err);
    assert_true(n == 0 || news == request);
    ASSERT_OK(ls_engine_poll(engine, 0, &news, 1, &n, &err), &err);
    assert_false(readable(fd));

    /* Stopped in the middle, it goes on by steps, and with the same text. */
    ls_request *third = submit_text(engine, "Once upon a time", 400);
    ls_engine_stop(engine);
    assert_int_equal(result_of(third).finish, LS_FINISH_NONE);
    while (ls_engine_step(engine, &err) == LS_OK) {
    }
    result = result_of(third);
    assert_int_equal(result.finish, LS_FINISH_LENGTH);
    assert_memory_equal(result.tokens, result_of(request).tokens, 20 * sizeof(int32_t));
    ls_request_free(&third);
    ls_request_free(&request);
    ls_engine_close(&engine);
    ls_model_close(&model);
}

/* Cancelled and freed while the thread steps; closed with requests under way. */
static void run_cancel_and_free(open_fn open) {
    ls_model *model = demo_model();
    ls_engine *engine = open(model, &(ls_engine_params)LS_ENGINE_PARAMS_INIT);
    ls_error err = {0};
    ASSERT_OK(ls_engine_start(engine, &err), &err);
    ls_request *stays = submit_text(engine, "One day, a small bird", 60);
    for (int i = 0; i < (sanitized() ? 5 : 40); i++) {
        ls_request *request = submit_text(engine, "Once upon a time", 450);
        usleep((useconds_t)(i % 5) * 700);
        if (i % 2 == 0) {
            ls_request_cancel(request);
            ls_request_cancel(request); /* once more is nothing more */
            wait_for(engine, request);
            ls_result result = result_of(request);
            assert_int_equal(result.finish, LS_FINISH_CANCELLED);
            assert_string_equal(ls_finish_name(result.finish), "cancelled");
        }
        ls_request_free(&request);
        assert_null(request);
    }
    wait_for(engine, stays);
    assert_int_equal(result_of(stays).finish, LS_FINISH_LENGTH);
    ls_request_cancel(stays); /* finished already */
    assert_int_equal(result_of(stays).finish, LS_FINISH_LENGTH);
    ls_engine_stats stats = LS_ENGINE_STATS_INIT;
    ASSERT_OK(ls_engine_get_stats(engine, &stats, &err), &err);
    assert_int_equal(stats.n_running + stats.n_waiting, 0);
    assert_int_equal(stats.n_free_pages, stats.n_pages);
    submit_text(engine, "The", 450); /* the engine's to free */
    ls_engine_close(&engine);
    ls_model_close(&model);
}

static void cancel_and_free(void **state) {
    (void)state;
    run_cancel_and_free(engine_open);
    run_cancel_and_free(delayed_engine_open);
}

/* Two models, each with an engine and a thread of its own, and a second engine on the first model. */
static void several_engines(void **state) {
    (void)state;
    golden_list list;
    golden_case *c = checkpoint(&list);
    ls_model *models[2] = {demo_model(), golden_model(c)};
    ls_engine_params params[3] = {LS_ENGINE_PARAMS_INIT, LS_ENGINE_PARAMS_INIT, LS_ENGINE_PARAMS_INIT};
    params[2].tensor_parallel_size = 2;
    ls_engine *engines[3];
    ls_request *requests[3], *again[3];
    ls_error err = {0};
    for (int i = 0; i < 3; i++) {
        engines[i] = engine_open(models[i == 1], &params[i]);
        ASSERT_OK(ls_engine_start(engines[i], &err), &err);
    }
    for (int i = 0; i < 3; i++) {
        requests[i] = submit_text(engines[i], "abc", 40);
    }
    for (int i = 0; i < 3; i++) {
        wait_for(engines[i], requests[i]);
        ls_engine_stop(engines[i]);
        again[i] = submit_text(engines[i], "abc", 40);
        while (ls_engine_step(engines[i], &err) == LS_OK) {
        }
        assert_string_equal(result_of(requests[i]).text, result_of(again[i]).text);
    }
    assert_string_equal(result_of(requests[0]).text, result_of(requests[2]).text);
    assert_string_not_equal(result_of(requests[0]).text, result_of(requests[1]).text);
    for (int i = 0; i < 3; i++) {
        ls_engine_close(&engines[i]);
    }
    ls_model_close(&models[0]);
    ls_model_close(&models[1]);
    golden_close(&list);
}

/* ---- KV reuse ---- */

typedef struct turn {
    ls_request *request;
    uint64_t hash;
    size_t n_reused;
} turn;

/* Greedy, over prompt ids; keeps its cache. */
static turn run_turn(ls_engine *engine, const int32_t *id, size_t n, int max_tokens, ls_request *reuse) {
    ls_request_params params = LS_REQUEST_PARAMS_INIT;
    ls_error err = {0};
    turn t = {0};
    params.prompt_tokens = id;
    params.n_prompt_tokens = n;
    params.max_tokens = max_tokens;
    params.temperature = 0;
    params.ignore_eos = params.hash_logits = params.keep_cache = true;
    params.reuse = reuse;
    ASSERT_OK(ls_request_submit(engine, &params, &t.request, &err), &err);
    while (ls_engine_step(engine, &err) == LS_OK) {
    }
    ls_result result = result_of(t.request);
    t.hash = result.logits_hash;
    t.n_reused = result.n_reused_tokens;
    return t;
}

static void reuse_from_turn_to_turn(void **state) {
    (void)state;
    enum { FIRST = 70, SECOND = 150, PAGES = 8 };
    ls_model *model = demo_model();
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    params.max_model_len_tokens = 256;
    params.max_num_seqs = 2; /* 8 pages of 64 tokens */
    ls_engine *engine = engine_open(model, &params);
    int32_t id[SECOND];
    for (int i = 0; i < SECOND; i++) {
        id[i] = 300 + i * 7 % 1000;
    }
    turn first = run_turn(engine, id, FIRST, 20, NULL);
    assert_int_equal(first.n_reused, 0);
    memcpy(id + FIRST, result_of(first.request).tokens + FIRST, 15 * sizeof *id); /* the answer, cut short */
    turn fresh = run_turn(engine, id, SECOND, 10, NULL);
    turn second = run_turn(engine, id, SECOND, 10, first.request);
    assert_int_equal(second.n_reused, FIRST + 15);
    assert_true(second.hash == fresh.hash);
    assert_int_equal(run_turn(engine, id, SECOND, 5, first.request).n_reused, 0); /* it was taken over already */
    /* All but the last token of a prompt that is the same. */
    turn same = run_turn(engine, id, SECOND, 10, second.request);
    assert_int_equal(same.n_reused, SECOND - 1);
    assert_true(same.hash == fresh.hash);
    /* A prompt that differs from its first token on. */
    id[0]++;
    assert_int_equal(run_turn(engine, id, SECOND, 10, same.request).n_reused, 0);
    ls_engine_stats stats = LS_ENGINE_STATS_INIT;
    ls_error err = {0};
    ASSERT_OK(ls_engine_get_stats(engine, &stats, &err), &err);
    assert_int_equal(stats.n_pages, PAGES);
    assert_int_equal(stats.n_free_pages, PAGES); /* what is kept counts as free */
    assert_int_equal(stats.preemptions, 0);      /* others' pages were taken first */
    ls_engine *other = engine_open(model, &params);
    ls_request_params bad = LS_REQUEST_PARAMS_INIT;
    ls_request *refused = NULL;
    bad.prompt_tokens = id;
    bad.n_prompt_tokens = 1;
    bad.reuse = same.request;
    ASSERT_FAILS(ls_request_submit(other, &bad, &refused, &err), &err, LS_EINVAL, "reuse", "another engine");
    ls_engine_close(&other);
    /* Freed before the request that names it is scheduled: computed from the start. */
    turn last = run_turn(engine, id, FIRST, 3, NULL);
    bad.reuse = last.request;
    ASSERT_OK(ls_request_submit(engine, &bad, &refused, &err), &err);
    ls_request_free(&last.request);
    while (ls_engine_step(engine, &err) == LS_OK) {
    }
    assert_int_equal(result_of(refused).n_reused_tokens, 0);
    ls_engine_close(&engine);
    ls_model_close(&model);
}

/* ---- One step behind, step by step ---- */

enum { TOKENS = 60, TURNS = 4 };

typedef struct story {
    int32_t token[TURNS][2 * TOKENS];
    size_t n_tokens[TURNS], n_reused[TURNS];
    ls_finish finish[TURNS];
} story;

static ls_request *begin_turn(ls_engine *engine, const int32_t *id, size_t n, int max_tokens, int32_t stop_token,
                              ls_request *reuse) {
    ls_request_params params = LS_REQUEST_PARAMS_INIT;
    ls_request *request = NULL;
    ls_error err = {0};
    params.prompt_tokens = id;
    params.n_prompt_tokens = n;
    params.max_tokens = max_tokens;
    params.temperature = 0;
    params.ignore_eos = params.keep_cache = true;
    params.stop_tokens = &stop_token;
    params.n_stop_tokens = stop_token >= 0;
    params.reuse = reuse;
    ASSERT_OK(ls_request_submit(engine, &params, &request, &err), &err);
    return request;
}

/* Two texts; the second stops at a token that comes in the middle, while the first goes on. Then a third goes on from the
 * second one's cache, and a fourth comes and is cancelled between two steps. */
static void tell(ls_engine *engine, int32_t stop_token, story *out) {
    int32_t id[2 * TOKENS];
    ls_request *told[TURNS];
    ls_error err = {0};
    for (int i = 0; i < 2 * TOKENS; i++) {
        id[i] = 300 + i * 7 % 1000;
    }
    told[0] = begin_turn(engine, id, 5, 40, -1, NULL);
    told[1] = begin_turn(engine, id, TOKENS, TOKENS, stop_token, NULL);
    while (result_of(told[1]).finish == LS_FINISH_NONE) {
        ASSERT_OK(ls_engine_step(engine, &err), &err);
    }
    ls_result second = result_of(told[1]);
    assert_int_equal(second.stop_token, stop_token);
    assert_true(second.n_tokens <= COUNT(id));
    memcpy(id, second.tokens, second.n_tokens * sizeof *id);
    told[2] = begin_turn(engine, id, second.n_tokens + 3, 12, -1, told[1]);
    told[3] = begin_turn(engine, id + 1, 7, 50, -1, NULL);
    while (result_of(told[3]).n_tokens < 7 + 5) {
        ASSERT_OK(ls_engine_step(engine, &err), &err);
    }
    assert_int_equal(result_of(told[0]).finish, LS_FINISH_NONE); /* the new ones were let in beside it */
    ls_request_cancel(told[3]);
    assert_int_equal(result_of(told[3]).finish, LS_FINISH_CANCELLED);
    while (ls_engine_step(engine, &err) == LS_OK) {
    }
    for (int i = 0; i < TURNS; i++) {
        ls_result result = result_of(told[i]);
        out->n_tokens[i] = result.n_tokens;
        out->n_reused[i] = result.n_reused_tokens;
        out->finish[i] = result.finish;
        assert_true(result.n_tokens <= COUNT(out->token[i]));
        memcpy(out->token[i], result.tokens, result.n_tokens * sizeof(int32_t));
        ls_request_free(&told[i]);
    }
    ls_engine_stats stats = LS_ENGINE_STATS_INIT;
    ASSERT_OK(ls_engine_get_stats(engine, &stats, &err), &err);
    assert_int_equal(stats.n_free_pages, stats.n_pages);
    assert_int_equal(engine->pages.n_free, stats.n_pages);
}

/* Known ends have no row too many: the prompt's step, and one ahead for each token but the first. */
static void lengths_are_known(void **state) {
    (void)state;
    enum { CONTEXT = 64 };
    static const int32_t id[] = {300, 307, 314};
    ls_model *model = demo_model();
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    ls_error err = {0};
    params.max_model_len_tokens = CONTEXT;
    ls_engine *engine = delayed_engine_open(model, &params);
    const int lengths[] = {0, 1, 2, CONTEXT - 3};
    for (size_t i = 0; i < COUNT(lengths); i++) {
        const int n = lengths[i] > 0 ? lengths[i] : 1;
        const int64_t before = engine->stats.ahead_steps;
        int n_steps = 0;
        ls_request *request = begin_turn(engine, id, 3, lengths[i], -1, NULL);
        while (ls_engine_step(engine, &err) == LS_OK) {
            n_steps++;
        }
        assert_int_equal(result_of(request).n_tokens, 3 + lengths[i]);
        assert_int_equal(n_steps, n);
        assert_int_equal(engine->stats.ahead_steps - before, n - 1);
        ls_request_free(&request);
    }
    ls_engine_close(&engine);
    ls_model_close(&model);
}

/* What the host does between two steps is its time, unless a step is ahead; what it does without work is not. */
static void host_time(void **state) {
    (void)state;
    enum { N = 8, PAUSE_US = 20000 };
    static const int32_t id[] = {300, 307, 314};
    ls_model *model = demo_model();
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    ls_error err = {0};
    for (int k = 0; k < 2; k++) {
        ls_engine *engine = k == 0 ? engine_open(model, &params) : delayed_engine_open(model, &params);
        const engine_stats *stats = &engine->stats;
        for (int i = 1; i <= 2; i++) {
            ls_request *request = begin_turn(engine, id, 3, N, -1, NULL);
            int64_t decode_ns = stats->decode_host_ns, prefill_ns = stats->prefill_host_ns;
            usleep(PAUSE_US); /* nobody steps yet */
            while (ls_engine_step(engine, &err) == LS_OK) {
                usleep(PAUSE_US);
            }
            int64_t all_ns = stats->decode_host_ns - decode_ns, pauses_ns = (int64_t)(N - 1) * PAUSE_US * 1000;
            assert_int_equal(stats->decode_steps, i * (N - 1));
            assert_true(k == 0 ? all_ns >= pauses_ns : all_ns == 0);
            assert_in_range(stats->prefill_host_ns - prefill_ns, 1, PAUSE_US * 1000);
            ls_request_free(&request);
        }
        ls_engine_close(&engine);
    }
    ls_model_close(&model);
}

/* Tokens, what is kept for reuse, and pages are those of an engine that waits for every step, wherever the stop comes. */
static void discarded_tokens_leave_nothing(void **state) {
    (void)state;
    ls_model *model = demo_model();
    ls_engine_params params = LS_ENGINE_PARAMS_INIT, waiting = LS_ENGINE_PARAMS_INIT;
    ls_error err = {0};
    int32_t id[TOKENS];
    int n_stops = 0;
    waiting.async_scheduling = "off";
    for (int i = 0; i < TOKENS; i++) {
        id[i] = 300 + i * 7 % 1000;
    }
    ls_engine *engine = engine_open(model, &params);
    ls_request *whole = begin_turn(engine, id, TOKENS, 12, -1, NULL);
    while (ls_engine_step(engine, &err) == LS_OK) {
    }
    const int32_t *answer = result_of(whole).tokens + TOKENS;
    /* From i = 5 on there is a second page. */
    for (int i = sanitized() ? 4 : 1; i < 12 && (n_stops < 2 || !sanitized()); i++) {
        bool is_new = true;
        for (int j = 0; j < i; j++) {
            is_new = is_new && answer[j] != answer[i];
        }
        if (!is_new) {
            continue;
        }
        story told[3] = {0};
        ls_engine *engines[] = {engine_open(model, &params), delayed_engine_open(model, &params),
                                delayed_engine_open(model, &waiting)};
        delayed_engine_slow_down(engines[1], 200);
        for (int k = 0; k < 3; k++) {
            tell(engines[k], answer[i], &told[k]);
            assert_memory_equal(&told[k], &told[0], sizeof *told);
            assert_true(k == 1 ? engines[k]->stats.ahead_steps > 30 : engines[k]->stats.ahead_steps == 0);
            ls_engine_close(&engines[k]);
        }
        assert_int_equal(told[0].n_tokens[1], TOKENS + i + 1);
        assert_int_equal(told[0].n_reused[2], TOKENS + i);
        n_stops++;
    }
    assert_true(n_stops > (sanitized() ? 1 : 5));
    ls_engine_close(&engine);
    ls_model_close(&model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(thousand_requests),
        cmocka_unit_test(one_step_behind),
        cmocka_unit_test(rules_of_the_thread),
        cmocka_unit_test(cancel_and_free),
        cmocka_unit_test(several_engines),
        cmocka_unit_test(reuse_from_turn_to_turn),
        cmocka_unit_test(discarded_tokens_leave_nothing),
        cmocka_unit_test(lengths_are_known),
        cmocka_unit_test(host_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
