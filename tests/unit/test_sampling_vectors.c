/*
 * Drawn tokens against the probabilities that transformers' logits processors leave (tools/make_sampling_vectors.py):
 * 100,000 draws a case through logit_edits, the op `sample` on R ranks and sampler_pick, chi-square.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "backend/cpu/cpu.h"
#include "base/json.h"
#include "chi_square.h"
#include "engine/logit_edits.h"
#include "engine/sampler.h"
#include "rank/shard.h"

enum { V = 64, FIRST_BYTE = 32, MAX_LIST = 64 };

static bool sanitized(void) {
    const char *san = getenv("LS_SAN");
    return san != NULL && san[0] != '\0';
}

typedef struct vector {
    const char *name;
    float logits[V];
    double probability[V];
    int32_t token[MAX_LIST]; /* prompt, then answer */
    int n_prompt, n_tokens;
    int32_t stop_tokens[MAX_LIST], allowed[MAX_LIST];
    int n_stop;
    ls_logit_bias bias[MAX_LIST];
    const char *bad_word[MAX_LIST];
    ls_request_params params;
    ls_sample_params sample;
    logit_edits edits;
} vector;

static int read_ints(const json_t *array, int32_t *out) {
    int n = (int)json_array_size(array);
    assert_true(n <= MAX_LIST);
    for (int i = 0; i < n; i++) {
        out[i] = (int32_t)json_integer_value(json_array_get(array, (size_t)i));
    }
    return n;
}

static double number(const json_t *object, const char *key, double fallback) {
    const json_t *value = json_object_get(object, key);
    return value != NULL ? json_number_value(value) : fallback;
}

/* Token i is byte FIRST_BYTE + i; the byte-level spelling of the space is U+0120. */
static ls_tokenizer *make_tokenizer(void) {
    char json[8192];
    int n = snprintf(json, sizeof json,
                     "{\"added_tokens\": [], \"pre_tokenizer\": {\"type\": \"ByteLevel\", \"add_prefix_space\": false, "
                     "\"use_regex\": false}, \"decoder\": {\"type\": \"ByteLevel\"}, "
                     "\"model\": {\"type\": \"BPE\", \"merges\": [], \"vocab\": {");
    for (int id = 0; id < V; id++) {
        n += snprintf(json + n, sizeof json - (size_t)n, "%s\"\\u%04x\": %d", id > 0 ? ", " : "",
                      id == 0 ? 0x120 : FIRST_BYTE + id, id);
    }
    n += snprintf(json + n, sizeof json - (size_t)n, "}}}");
    ls_tokenizer *tokenizer = NULL;
    ls_error err = {0};
    if (tokenizer_parse(&tokenizer, "made up", json, (size_t)n, &err) != LS_OK) {
        fail_msg("%s", err.text);
    }
    return tokenizer;
}

static void read_vector(vector *v, const json_t *object, const ls_tokenizer *tokenizer) {
    v->name = json_string_value(json_object_get(object, "name"));
    for (size_t i = 0; i < V; i++) {
        v->logits[i] = (float)json_number_value(json_array_get(json_object_get(object, "logits"), i));
        v->probability[i] = json_number_value(json_array_get(json_object_get(object, "probabilities"), i));
    }
    v->n_prompt = read_ints(json_object_get(object, "prompt"), v->token);
    v->n_tokens = v->n_prompt + read_ints(json_object_get(object, "answer"), v->token + v->n_prompt);
    v->n_stop = read_ints(json_object_get(object, "stop_tokens"), v->stop_tokens);
    v->params = (ls_request_params)LS_REQUEST_PARAMS_INIT;
    v->params.presence_penalty = number(object, "presence_penalty", 0);
    v->params.frequency_penalty = number(object, "frequency_penalty", 0);
    v->params.min_tokens = (int)number(object, "min_tokens", 0);
    const json_t *bias = json_object_get(object, "logit_bias"), *bad = json_object_get(object, "bad_words");
    for (size_t i = 0; i < json_array_size(bias); i++) {
        const json_t *pair = json_array_get(bias, i);
        v->bias[i] = (ls_logit_bias){(int32_t)json_integer_value(json_array_get(pair, 0)),
                                     (float)json_number_value(json_array_get(pair, 1))};
    }
    for (size_t i = 0; i < json_array_size(bad); i++) {
        v->bad_word[i] = json_string_value(json_array_get(bad, i));
    }
    v->params.logit_bias = v->bias;
    v->params.n_logit_bias = json_array_size(bias);
    v->params.bad_words = v->bad_word;
    v->params.n_bad_words = json_array_size(bad);
    ls_error err = {0};
    if (logit_edits_init(&v->edits, &v->params, number(object, "repetition_penalty", 1), v->stop_tokens, v->n_stop,
                         tokenizer, V, MAX_LIST, &err) != LS_OK) {
        fail_msg("%s: %s", v->name, err.text);
    }
    for (int i = 0; i < v->n_tokens; i++) {
        logit_edits_push(&v->edits, v->token[i], i >= v->n_prompt);
    }
    logit_edits_prepare(&v->edits, v->token, v->n_prompt, v->n_tokens);
    v->sample = (ls_sample_params){.temperature = (float)number(object, "temperature", 1),
                                   .top_k = (int)number(object, "top_k", 0),
                                   .top_p = (float)number(object, "top_p", 1),
                                   .min_p = (float)number(object, "min_p", 0),
                                   .seed = 2026,
                                   .edit = v->edits.edit,
                                   .n_edits = v->edits.n,
                                   .n_top = -1};
    v->sample.n_allowed = read_ints(json_object_get(object, "allowed_tokens"), v->allowed);
    v->sample.allowed = v->sample.n_allowed > 0 ? v->allowed : NULL;
}

static int32_t draw(const vector *v, int n_ranks, int position) {
    static ls_sample_part part[LS_MAX_RANKS];
    sampler_row row = {.n_ranks = n_ranks};
    ls_sample_params how = v->sample;
    how.position = position;
    float edited[V];
    ls_candidate candidate[V];
    for (int r = 0; r < n_ranks; r++) {
        ls_group group = {r, n_ranks};
        shard_range vocab = shard_leaves(V, group);
        ls_op op = {
            .kind = OP_SAMPLE,
            .sample = {(int)vocab.first, (int)vocab.count, V, shard_leaf_first(group), shard_leaf_count(group)}};
        ls_bind bind = {.group = group, .isa = cpu_isa_best()};
        ls_step step = {.n_rows = 1, .n_out = 1, .sample = &how};
        ls_team team = {0, 1, NULL};
        bind.buf[BUF_LOGITS] = (void *)(uintptr_t)(v->logits + vocab.first);
        bind.buf[BUF_SAMPLE] = &part[r];
        bind.buf[BUF_EDITED] = edited;
        cpu_ref_ops.fn[OP_SAMPLE](&op, 0, &bind, &step, &team);
        row.part[r] = &part[r];
        row.logits[r] = v->logits + vocab.first;
        row.vocab_first[r] = (int)vocab.first;
        row.vocab_count[r] = (int)vocab.count;
    }
    return sampler_pick(&row, &how, candidate, edited);
}

static double p_of(const vector *v, int n_ranks) {
    int seen[V] = {0};
    const int draws = sanitized() ? 10000 : 100000;
    for (int position = 0; position < draws; position++) {
        int32_t token = draw(v, n_ranks, position);
        assert_true(token >= 0 && token < V);
        seen[token]++;
    }
    return draws_p(seen, v->probability, V, draws);
}

static json_t *load(void) {
    json_error_t error;
    json_t *cases = json_load_file("tests/golden/sampling.json", 0, &error);
    if (cases == NULL) {
        fail_msg("tests/golden/sampling.json: %s", error.text);
    }
    assert_true(json_array_size(cases) >= 20);
    return cases;
}

static void test_transformers_probabilities(void **state) {
    (void)state;
    ls_tokenizer *tokenizer = make_tokenizer();
    json_t *cases = load();
    for (size_t i = 0; i < json_array_size(cases); i++) {
        vector v = {0};
        read_vector(&v, json_array_get(cases, i), tokenizer);
        double p = p_of(&v, i % 2 == 0 ? 1 : 4);
        print_message("%-28s p = %.3f\n", v.name, p);
        assert_true(p > 1e-4);
        for (int position = 0; position < 300; position++) { /* the same draw on any number of ranks */
            assert_int_equal(draw(&v, 1, position), draw(&v, 8, position));
        }
        logit_edits_deinit(&v.edits);
    }
    json_decref(cases);
    tokenizer_close(&tokenizer);
}

/* The test can fail: a parameter that is a little off is noticed. */
static void test_notices_what_is_off(void **state) {
    (void)state;
    ls_tokenizer *tokenizer = make_tokenizer();
    json_t *cases = load();
    int n_noticed = 0;
    for (size_t i = 0; i < json_array_size(cases); i++) {
        vector v = {0};
        read_vector(&v, json_array_get(cases, i), tokenizer);
        v.sample.temperature *= 1.15F;
        n_noticed += p_of(&v, 1) < 1e-4;
        logit_edits_deinit(&v.edits);
    }
    assert_true(n_noticed >= (sanitized() ? 10 : 20));
    json_decref(cases);
    tokenizer_close(&tokenizer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_transformers_probabilities),
        cmocka_unit_test(test_notices_what_is_off),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
