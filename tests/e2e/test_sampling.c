/*
 * What a request's sampling parameters do to its answer, through the whole engine on the demo model: what may stop it,
 * what is forbidden, what is reported. That the probabilities are right is tests/unit/test_sampling_vectors.c's.
 */
#include "e2e.h"

#include <math.h>

static const char PROMPT[] = "Once upon a time, there was a little";

typedef struct answer {
    ls_request *request;
    ls_result result;
    char pieces[8192];
    size_t n_pieces;
} answer;

static void on_text(void *user, ls_request *request, int32_t token, const char *text, size_t text_bytes) {
    answer *a = user;
    (void)request;
    (void)token;
    assert_true(a->n_pieces + text_bytes < sizeof a->pieces);
    memcpy(a->pieces + a->n_pieces, text, text_bytes + 1);
    a->n_pieces += text_bytes;
}

static ls_request_params greedy(int max_tokens) {
    ls_request_params params = LS_REQUEST_PARAMS_INIT;
    params.prompt = PROMPT;
    params.prompt_bytes = sizeof PROMPT - 1;
    params.max_tokens = max_tokens;
    params.temperature = 0;
    return params;
}

/* Runs it to its end; pieces and text must say the same. The caller frees a->request. */
static void run(ls_engine *engine, ls_request_params *params, answer *a) {
    ls_error err = {0};
    *a = (answer){.result = LS_RESULT_INIT};
    params->on_text = on_text;
    params->user = a;
    ASSERT_OK(ls_request_submit(engine, params, &a->request, &err), &err);
    while (ls_engine_step(engine, &err) == LS_OK) {
        ls_result now = LS_RESULT_INIT; /* asking in between changes nothing */
        ASSERT_OK(ls_request_get_result(a->request, &now, &err), &err);
    }
    ASSERT_OK(ls_request_get_result(a->request, &a->result, &err), &err);
    assert_string_equal(a->pieces, a->result.text);
    assert_int_equal(a->n_pieces, a->result.text_bytes);
}

static const int32_t *tokens_of(const answer *a) {
    return a->result.tokens + a->result.n_prompt_tokens;
}

static size_t count_of(const answer *a) {
    return a->result.n_tokens - a->result.n_prompt_tokens;
}

static int times_of(const answer *a, int32_t token) {
    int n = 0;
    for (size_t i = 0; i < count_of(a); i++) {
        n += tokens_of(a)[i] == token;
    }
    return n;
}

typedef struct fixture {
    ls_model *model;
    ls_engine *engine;
    answer plain; /* greedy, 60 tokens */
} fixture;

static int set_up(void **state) {
    fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    f->model = demo_model();
    f->engine = engine_open(f->model, &(ls_engine_params)LS_ENGINE_PARAMS_INIT);
    ls_request_params params = greedy(60);
    params.ignore_eos = true;
    run(f->engine, &params, &f->plain);
    assert_int_equal(f->plain.result.finish, LS_FINISH_LENGTH);
    assert_null(f->plain.result.stop_string);
    assert_int_equal(f->plain.result.stop_token, -1);
    *state = f;
    return 0;
}

static int tear_down(void **state) {
    fixture *f = *state;
    ls_engine_close(&f->engine);
    ls_model_close(&f->model);
    free(f);
    return 0;
}

/* A word in the middle of the plain answer. */
static void middle_word(const fixture *f, char word[32], size_t *at) {
    const char *text = f->plain.result.text;
    const char *space = strchr(text + 40, ' ');
    assert_non_null(space);
    size_t n = strcspn(space + 1, " ,.\n");
    assert_true(n > 0 && n < 31);
    memcpy(word, space + 1, n);
    word[n] = '\0';
    *at = (size_t)(strstr(text, word) - text);
}

static void stop_strings(void **state) {
    const fixture *f = *state;
    char word[32];
    size_t at;
    answer a;
    middle_word(f, word, &at);
    const char *stop[] = {"never in this text", word};
    ls_request_params params = greedy(60);
    params.ignore_eos = true;
    params.stop = stop;
    params.n_stop = 2;
    run(f->engine, &params, &a);
    assert_int_equal(a.result.finish, LS_FINISH_STOP);
    assert_string_equal(a.result.stop_string, word);
    assert_int_equal(a.result.text_bytes, at);
    assert_memory_equal(a.result.text, f->plain.result.text, at);
    assert_memory_equal(tokens_of(&a), tokens_of(&f->plain), count_of(&a) * sizeof(int32_t));
    ls_request_free(&a.request);

    params.include_stop = true;
    run(f->engine, &params, &a);
    assert_int_equal(a.result.text_bytes, at + strlen(word));
    size_t n_tokens = count_of(&a);
    ls_request_free(&a.request);

    params.include_stop = false;
    params.min_tokens = (int)n_tokens; /* the text of so many tokens does not count */
    run(f->engine, &params, &a);
    assert_true(count_of(&a) > n_tokens);
    ls_request_free(&a.request);

    params = greedy(60);
    params.stop = (const char *const[]){""};
    params.n_stop = 1;
    ls_error err = {0};
    ASSERT_FAILS(ls_request_submit(f->engine, &params, &a.request, &err), &err, LS_EINVAL, "stop");
}

static void stop_tokens(void **state) {
    const fixture *f = *state;
    int32_t token = tokens_of(&f->plain)[20];
    answer a;
    ls_request_params params = greedy(60);
    params.ignore_eos = true; /* the caller's own tokens stop it all the same */
    params.stop_tokens = &token;
    params.n_stop_tokens = 1;
    run(f->engine, &params, &a);
    assert_int_equal(a.result.finish, LS_FINISH_STOP);
    assert_int_equal(a.result.stop_token, token);
    assert_int_equal(tokens_of(&a)[count_of(&a) - 1], token);
    size_t without = a.result.text_bytes, n = count_of(&a);
    assert_memory_equal(a.result.text, f->plain.result.text, without);
    ls_request_free(&a.request);

    params.include_stop = true;
    run(f->engine, &params, &a);
    assert_true(a.result.text_bytes > without && count_of(&a) == n);
    ls_request_free(&a.request);

    params.min_tokens = (int)n + 3; /* now it is forbidden until then */
    run(f->engine, &params, &a);
    assert_true(count_of(&a) > n + 3);
    for (size_t i = 0; i < n + 3; i++) {
        assert_true(tokens_of(&a)[i] != token);
    }
    ls_request_free(&a.request);
}

static void forbidden_and_biased(void **state) {
    const fixture *f = *state;
    int32_t first = tokens_of(&f->plain)[0];
    answer a;
    ls_request_params params = greedy(60);
    params.ignore_eos = true;
    const ls_logit_bias bias[] = {{first, -INFINITY}, {first, 3}};
    params.logit_bias = bias;
    params.n_logit_bias = 2; /* they add up */
    run(f->engine, &params, &a);
    assert_int_equal(times_of(&a, first), 0);
    ls_request_free(&a.request);

    const ls_logit_bias push = {first, 1000};
    params.logit_bias = &push;
    params.n_logit_bias = 1;
    run(f->engine, &params, &a);
    assert_int_equal(times_of(&a, first), 60);
    ls_request_free(&a.request);

    /* The same push, and a penalty for each time it was said. */
    params.frequency_penalty = 100;
    run(f->engine, &params, &a);
    assert_in_range(times_of(&a, first), 9, 11);
    ls_request_free(&a.request);
    params.frequency_penalty = 0;
    params.presence_penalty = 100; /* once only */
    params.logit_bias = &(ls_logit_bias){first, 100};
    run(f->engine, &params, &a);
    assert_true(times_of(&a, first) >= 1 && times_of(&a, first) < 60);
    ls_request_free(&a.request);

    const int32_t allowed[] = {first, tokens_of(&f->plain)[1], first};
    params = greedy(30);
    params.ignore_eos = true;
    params.allowed_tokens = allowed;
    params.n_allowed_tokens = 3;
    run(f->engine, &params, &a);
    assert_int_equal(times_of(&a, allowed[0]) + times_of(&a, allowed[1]), 30);
    ls_request_free(&a.request);

    params.logit_bias = (const ls_logit_bias[]){{allowed[0], -INFINITY}, {allowed[1], -INFINITY}};
    params.n_logit_bias = 2;
    ls_error err = {0};
    ASSERT_OK(ls_request_submit(f->engine, &params, &a.request, &err), &err);
    assert_int_equal(ls_engine_step(f->engine, &err), LS_OK);
    ls_result result = LS_RESULT_INIT;
    ASSERT_OK(ls_request_get_result(a.request, &result, &err), &err);
    assert_int_equal(result.finish, LS_FINISH_ERROR);
    assert_int_equal(result.status, LS_EINVAL);
    assert_non_null(strstr(result.error, "every token is forbidden"));
    ls_request_free(&a.request);
}

static void bad_words(void **state) {
    const fixture *f = *state;
    char word[32];
    size_t at;
    answer a;
    middle_word(f, word, &at);
    const char *bad[] = {word};
    ls_request_params params = greedy(60);
    params.ignore_eos = true;
    params.bad_words = bad;
    params.n_bad_words = 1;
    run(f->engine, &params, &a);
    assert_memory_equal(a.result.text, f->plain.result.text, at);
    assert_int_not_equal(strncmp(a.result.text + at, word, strlen(word)), 0);
    ls_request_free(&a.request);
    bad[0] = "  ";
    ls_error err = {0};
    ASSERT_FAILS(ls_request_submit(f->engine, &params, &a.request, &err), &err, LS_EINVAL, "bad_words", "empty");
}

static void repetition(void **state) {
    const fixture *f = *state;
    answer a;
    ls_request_params params = greedy(60);
    params.ignore_eos = true;
    params.repetition_penalty = 100; /* nothing twice, nothing of the prompt, while there is anything else */
    run(f->engine, &params, &a);
    for (size_t i = 0; i < count_of(&a); i++) {
        assert_int_equal(times_of(&a, tokens_of(&a)[i]), 1);
        for (size_t j = 0; j < a.result.n_prompt_tokens; j++) {
            assert_true(a.result.tokens[j] != tokens_of(&a)[i]);
        }
    }
    ls_request_free(&a.request);
}

static void choices_and_seeds(void **state) {
    const fixture *f = *state;
    answer a[4];
    for (int i = 0; i < 4; i++) {
        ls_request_params params = greedy(40);
        params.temperature = 1;
        params.seed = 42;
        params.choice = (uint32_t)(i % 3); /* the last as the first */
        run(f->engine, &params, &a[i]);
    }
    assert_string_equal(a[0].result.text, a[3].result.text);
    assert_string_not_equal(a[0].result.text, a[1].result.text);
    assert_string_not_equal(a[1].result.text, a[2].result.text);
    for (int i = 0; i < 4; i++) {
        ls_request_free(&a[i].request);
    }
}

/* ---- Log probabilities ---- */

typedef struct rows {
    answer a; /* first: on_text takes it */
    float *logits;
    int n_vocab, n;
} rows;

static void on_logits(void *user, ls_request *request, int position, const float *logits, int n_vocab) {
    rows *r = user;
    (void)request;
    assert_true(position < r->n && n_vocab == r->n_vocab);
    memcpy(r->logits + (size_t)position * (size_t)n_vocab, logits, (size_t)n_vocab * sizeof *logits);
}

static double log_softmax(const float *logits, int n, int32_t token) {
    double max = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++) {
        max = fmax(max, (double)logits[i]);
    }
    for (int i = 0; i < n; i++) {
        sum += exp((double)logits[i] - max);
    }
    return (double)logits[token] - max - log(sum);
}

static void check_logprobs(const rows *r, ls_request *request, const ls_result *result, size_t i, int n_top) {
    ls_logprobs got;
    ls_error err = {0};
    const float *row = r->logits + (i - 1) * (size_t)r->n_vocab;
    ASSERT_OK(ls_request_get_logprobs(request, i, &got, &err), &err);
    assert_true(fabs((double)got.logprob - log_softmax(row, r->n_vocab, result->tokens[i])) < 2e-5);
    assert_int_equal(got.n_top, n_top);
    int rank = 0;
    for (int v = 0; v < r->n_vocab; v++) {
        rank += row[v] > row[result->tokens[i]];
    }
    assert_int_equal(got.rank, rank);
    for (int t = 0; t < n_top; t++) {
        assert_true(fabs((double)got.top[t].logprob - log_softmax(row, r->n_vocab, got.top[t].token)) < 2e-5);
        assert_true(t == 0 || got.top[t].logprob <= got.top[t - 1].logprob);
    }
    assert_true(n_top == 0 || got.top[0].token == row_argmax(row, r->n_vocab));
}

static void logprobs(void **state) {
    const fixture *f = *state;
    ls_model_info info = LS_MODEL_INFO_INIT;
    ls_error err = {0};
    ASSERT_OK(ls_model_get_info(f->model, &info, &err), &err);
    rows r = {.n_vocab = info.n_vocab, .n = 64};
    r.logits = malloc((size_t)r.n * (size_t)r.n_vocab * sizeof *r.logits);
    assert_non_null(r.logits);
    ls_request_params params = greedy(20);
    params.temperature = 0.8;
    params.seed = 4;
    params.repetition_penalty = 1.5; /* does not show in them */
    params.logprobs = 5;
    params.prompt_logprobs = 2;
    params.prompt_logits = true;
    params.ignore_eos = true;
    params.on_logits = on_logits;
    ls_engine_params ranks = LS_ENGINE_PARAMS_INIT;
    ranks.tensor_parallel_size = 2;
    ls_engine *engine = engine_open(f->model, &ranks);
    params.user = &r;
    ls_request *request = NULL;
    ASSERT_OK(ls_request_submit(engine, &params, &request, &err), &err);
    ls_logprobs got;
    ASSERT_FAILS(ls_request_get_logprobs(request, 1, &got, &err), &err, LS_EINVAL, "not there yet");
    while (ls_engine_step(engine, &err) == LS_OK) {
    }
    ls_result result = LS_RESULT_INIT;
    ASSERT_OK(ls_request_get_result(request, &result, &err), &err);
    assert_int_equal(result.n_tokens, result.n_prompt_tokens + 20);
    ASSERT_OK(ls_request_get_logprobs(request, 0, &got, &err), &err);
    assert_true(isnan(got.logprob) && got.n_top == 0);
    for (size_t i = 1; i < result.n_tokens; i++) {
        check_logprobs(&r, request, &result, i, i < result.n_prompt_tokens ? 2 : 5);
    }
    ASSERT_FAILS(ls_request_get_logprobs(request, result.n_tokens, &got, &err), &err, LS_EINVAL, "not asked for");
    ls_engine_close(&engine);
    free(r.logits);

    params = greedy(3);
    params.logprobs = 21;
    ASSERT_FAILS(ls_request_submit(f->engine, &params, &request, &err), &err, LS_EINVAL, "logprobs 21", "from 0 to 20");
    params.logprobs = -1;
    params.prompt_logprobs = -2;
    ASSERT_FAILS(ls_request_submit(f->engine, &params, &request, &err), &err, LS_EINVAL, "prompt_logprobs -2");
    params.prompt_logprobs = -1;
    ASSERT_OK(ls_request_submit(f->engine, &params, &request, &err), &err);
    ASSERT_FAILS(ls_request_get_logprobs(request, 0, &got, &err), &err, LS_EINVAL, "not asked for", "prompt_logprobs");
    ls_request_free(&request);
}

static void refused_by_name(void **state) {
    const fixture *f = *state;
    const int32_t far[] = {1 << 30};
    ls_request_params ways[10];
    static const char *const words[] = {"min_p 1.5",
                                        "repetition_penalty 1000",
                                        "presence_penalty 101",
                                        "frequency_penalty",
                                        "min_tokens 9",
                                        "logit_bias: token id",
                                        "allowed_token_ids: token",
                                        "stop_token_ids: token",
                                        "allowed_token_ids: the list",
                                        "logit_bias: the bias"};
    for (size_t i = 0; i < COUNT(ways); i++) {
        ways[i] = greedy(8);
    }
    ways[0].min_p = 1.5;
    ways[1].repetition_penalty = 1000;
    ways[2].presence_penalty = 101;
    ways[3].frequency_penalty = NAN;
    ways[4].min_tokens = 9;
    ways[5].logit_bias = &(ls_logit_bias){-1, 1};
    ways[5].n_logit_bias = 1;
    ways[6].allowed_tokens = far;
    ways[6].n_allowed_tokens = 1;
    ways[7].stop_tokens = far;
    ways[7].n_stop_tokens = 1;
    ways[8].allowed_tokens = far;
    ways[9].logit_bias = &(ls_logit_bias){1, NAN};
    ways[9].n_logit_bias = 1;
    for (size_t i = 0; i < COUNT(ways); i++) {
        ls_request *request = NULL;
        ls_error err = {0};
        ASSERT_FAILS(ls_request_submit(f->engine, &ways[i], &request, &err), &err, LS_EINVAL, words[i]);
        assert_null(request);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stop_strings), cmocka_unit_test(stop_tokens),     cmocka_unit_test(forbidden_and_biased),
        cmocka_unit_test(bad_words),    cmocka_unit_test(repetition),      cmocka_unit_test(choices_and_seeds),
        cmocka_unit_test(logprobs),     cmocka_unit_test(refused_by_name),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
