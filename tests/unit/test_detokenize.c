/*
 * Incremental decoding: equal to Hugging Face's decode of the whole list (tests/golden), for any cut and any order of
 * ids, and never half a character on the way.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/json.h"
#include "text/detokenize.h"
#include "text/utf8.h"

#define DEMO "demo/tokenizer.json"
#define QWEN3 "../shared/data/tokenizers/Qwen3/tokenizer.json"

static ls_tokenizer *open_tokenizer(const char *path) {
    ls_tokenizer *tokenizer = NULL;
    ls_error err = {0};
    if (!file_exists(path)) {
        print_message("%s is absent\n", path);
        skip();
    }
    if (tokenizer_open(&tokenizer, path, NULL, &err) < 0) {
        fail_msg("%s", err.text);
    }
    return tokenizer;
}

/* Decodes one id at a time; what is there after each is valid UTF-8. */
static text_buffer decode(const ls_tokenizer *tokenizer, const int32_t *id, size_t n, bool skip_special) {
    detokenizer state;
    text_buffer out = {0};
    detokenizer_init(&state, tokenizer, skip_special);
    for (size_t i = 0; i < n; i++) {
        size_t before = out.n;
        assert_int_equal(detokenizer_push(&state, id[i], &out, NULL), LS_OK);
        assert_int_equal(utf8_valid_bytes(out.data + before, out.n - before), out.n - before);
    }
    assert_int_equal(detokenizer_flush(&state, &out, NULL), LS_OK);
    assert_int_equal(text_buffer_append(&out, "", 0, NULL), LS_OK); /* so that data is never NULL */
    return out;
}

static void assert_text(const text_buffer *got, const char *expected, size_t n) {
    assert_int_equal(got->n, n);
    assert_memory_equal(got->data, expected, n);
    assert_int_equal(got->data[n], '\0');
}

static void check_vectors(const char *tokenizer_path, const char *golden_path) {
    ls_tokenizer *tokenizer = open_tokenizer(tokenizer_path);
    json_doc golden = {0};
    assert_int_equal(json_doc_read(&golden, golden_path, 1 << 20, NULL), LS_OK);
    const json_t *rows = json_object_get(golden.root, "decode");
    assert_true(json_array_size(rows) > 100);
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i), *ids = json_array_get(row, 0);
        token_list list = {0};
        for (size_t k = 0; k < json_array_size(ids); k++) {
            int32_t id = (int32_t)json_integer_value(json_array_get(ids, k));
            assert_int_equal(token_list_push(&list, id, NULL), LS_OK);
        }
        for (int skip_special = 0; skip_special < 2; skip_special++) {
            const json_t *text = json_array_get(row, 1 + (size_t)skip_special);
            text = json_is_null(text) ? json_array_get(row, 1) : text;
            text_buffer got = decode(tokenizer, list.id, list.n, skip_special);
            assert_text(&got, json_string_value(text), json_string_length(text));
            text_buffer_deinit(&got);
        }
        token_list_deinit(&list);
    }
    json_doc_deinit(&golden);
    tokenizer_close(&tokenizer);
}

static void test_vectors(void **state) {
    (void)state;
    static const char *const names[] = {"llama2", "metaspace", "llama3", "odd"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char tokenizer[64], golden[64];
        snprintf(tokenizer, sizeof tokenizer, "tests/golden/tokenizer_%s.json", names[i]);
        snprintf(golden, sizeof golden, "tests/golden/tokens_%s.json", names[i]);
        check_vectors(tokenizer, golden);
    }
    check_vectors(DEMO, "tests/golden/tokens_demo.json");
}

static void test_vectors_qwen3(void **state) {
    (void)state;
    check_vectors(QWEN3, "tests/golden/tokens_qwen3.json");
}

/* Random ids, half of them parts of characters: the pieces are the lossy reading of all bytes at once. */
static void test_random_lists(void **state) {
    (void)state;
    ls_tokenizer *tokenizer = open_tokenizer(DEMO);
    uint32_t random = 1;
    for (int round = 0; round < 3000; round++) {
        token_list list = {0};
        text_buffer bytes[2] = {{0}, {0}}, expected = {0};
        int n = round % 17;
        for (int i = 0; i < n; i++) {
            random = random * 1664525u + 1013904223u;
            int32_t id = (int32_t)(random >> 16) % ((random >> 8 & 1) ? 4200 : 260); /* the first are single bytes */
            assert_int_equal(token_list_push(&list, id, NULL), LS_OK);
            const char *token;
            size_t n_token;
            if (tokenizer_token_bytes(tokenizer, id, &token, &n_token)) {
                assert_int_equal(text_buffer_append(&bytes[0], token, n_token, NULL), LS_OK);
                n_token = tokenizer_is_special(tokenizer, id) ? 0 : n_token;
                assert_int_equal(text_buffer_append(&bytes[1], token, n_token, NULL), LS_OK);
            }
        }
        for (int skip_special = 0; skip_special < 2; skip_special++) {
            text_buffer_clear(&expected);
            assert_int_equal(text_buffer_append(&expected, "", 0, NULL), LS_OK);
            const text_buffer *all = &bytes[skip_special];
            assert_int_equal(utf8_append_lossy(&expected, all->data, all->n, NULL), LS_OK);
            text_buffer got = decode(tokenizer, list.id, list.n, skip_special);
            assert_text(&got, expected.data, expected.n);
            text_buffer_deinit(&got);
        }
        text_buffer_deinit(&bytes[0]);
        text_buffer_deinit(&bytes[1]);
        text_buffer_deinit(&expected);
        token_list_deinit(&list);
    }
    tokenizer_close(&tokenizer);
}

/* What is encoded comes back, one id at a time; a character waits until it is whole. */
static void test_round_trip(void **state) {
    (void)state;
    static const char text[] = "Once upon a time \u4F60\u597D \U0001F600\U0001F469\u200D\U0001F467 caf\u00E9\n";
    ls_tokenizer *tokenizer = open_tokenizer(DEMO);
    token_list ids = {0};
    assert_int_equal(tokenizer_encode(tokenizer, text, sizeof text - 1, 0, &ids, NULL), LS_OK);
    text_buffer got = decode(tokenizer, ids.id, ids.n, true);
    assert_text(&got, text, sizeof text - 1);
    text_buffer_deinit(&got);
    ids.n = 0;
    assert_int_equal(tokenizer_encode(tokenizer, "\U0001F600", 4, 0, &ids, NULL), LS_OK);
    assert_int_equal(ids.n, 4); /* the demo has no token for it */
    text_buffer out = {0};
    detokenizer d;
    detokenizer_init(&d, tokenizer, false);
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(out.n, 0);
        assert_int_equal(detokenizer_push(&d, ids.id[i], &out, NULL), LS_OK);
    }
    assert_text(&out, "\U0001F600", 4);
    for (size_t i = 0; i < 3; i++) { /* cut by the end: one U+FFFD, and the state is fresh again */
        assert_int_equal(detokenizer_push(&d, ids.id[i], &out, NULL), LS_OK);
    }
    assert_int_equal(detokenizer_flush(&d, &out, NULL), LS_OK);
    assert_int_equal(detokenizer_flush(&d, &out, NULL), LS_OK);
    assert_text(&out, "\U0001F600\uFFFD", 7);
    assert_int_equal(detokenizer_push(&d, -1, &out, NULL), LS_OK);
    assert_int_equal(detokenizer_push(&d, 1 << 30, &out, NULL), LS_OK);
    assert_int_equal(out.n, 7);
    text_buffer_deinit(&out);
    token_list_deinit(&ids);
    tokenizer_close(&tokenizer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vectors),
        cmocka_unit_test(test_vectors_qwen3),
        cmocka_unit_test(test_random_lists),
        cmocka_unit_test(test_round_trip),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
