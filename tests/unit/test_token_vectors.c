/*
 * Ids, places and decoded text against Hugging Face `tokenizers` (tests/golden, written by tools/make_token_vectors.py):
 * small sets in full, and hashes of what it made of 10,000 strings for each tokenizer.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/json.h"
#include "text/detokenize.h"
#include "token_strings.h"

#define SHARED "../shared/data/tokenizers/"
#define LARGE "tests/golden/tokens_large.json"

static const char *const small[][2] = {
    {"demo/tokenizer.json", "tests/golden/tokens_demo.json"},
    {"tests/golden/tokenizer_llama2.json", "tests/golden/tokens_llama2.json"},
    {"tests/golden/tokenizer_metaspace.json", "tests/golden/tokens_metaspace.json"},
    {"tests/golden/tokenizer_llama3.json", "tests/golden/tokens_llama3.json"},
    {"tests/golden/tokenizer_odd.json", "tests/golden/tokens_odd.json"},
    {SHARED "Qwen3/tokenizer.json", "tests/golden/tokens_qwen3.json"},
};

/* NULL, with a message, if the file is not there. */
static ls_tokenizer *open_tokenizer(const char *path) {
    ls_tokenizer *tokenizer = NULL;
    ls_error err = {0};
    if (!file_exists(path)) {
        print_message("skipped: %s is absent\n", path);
        return NULL;
    }
    if (tokenizer_open(&tokenizer, path, NULL, &err) < 0) {
        fail_msg("%s", err.text);
    }
    return tokenizer;
}

static token_list encode(const ls_tokenizer *tokenizer, const char *text, size_t n, unsigned flags) {
    token_list ids = {0};
    ls_error err = {0};
    if (tokenizer_encode(tokenizer, text, n, flags, &ids, &err) < 0) {
        fail_msg("%s", err.text);
    }
    return ids;
}

static int32_t number(const json_t *list, size_t i) {
    return (int32_t)json_integer_value(json_array_get(list, i));
}

static void assert_ids(const char *what, const token_list *ids, const json_t *expected) {
    bool same = ids->n == json_array_size(expected);
    for (size_t i = 0; same && i < ids->n; i++) {
        same = ids->id[i] == number(expected, i);
    }
    if (!same) {
        for (size_t i = 0; i < ids->n; i++) {
            print_message("%d ", ids->id[i]);
        }
        fail_msg("%s: %zu ids are not the %zu expected", what, ids->n, json_array_size(expected));
    }
}

/* Start, from the end before it, and length of each. */
static void assert_spans(const char *what, const token_list *ids, const json_t *expected) {
    int32_t end = 0;
    for (size_t i = 0; i < ids->n; i++) {
        int32_t start = end + number(expected, 2 * i);
        end = start + number(expected, 2 * i + 1);
        if (ids->span[i].start != (uint32_t)start || ids->span[i].end != (uint32_t)end) {
            fail_msg("%s: token %zu lies at %u .. %u, expected %d .. %d", what, i, ids->span[i].start, ids->span[i].end,
                     start, end);
        }
    }
}

static void check_rows(const ls_tokenizer *tokenizer, const json_t *rows, unsigned flags, bool has_spans) {
    for (size_t i = 0; i < json_array_size(rows); i++) {
        const json_t *row = json_array_get(rows, i), *text = json_array_get(row, 0);
        const char *bytes = json_string_value(text);
        token_list ids = encode(tokenizer, bytes, json_string_length(text), flags);
        assert_ids(bytes, &ids, json_array_get(row, 1));
        token_list_deinit(&ids);
        if (has_spans) {
            ids = encode(tokenizer, bytes, json_string_length(text), flags | TOKENIZER_SPANS);
            assert_ids(bytes, &ids, json_array_get(row, 1));
            assert_spans(bytes, &ids, json_array_get(row, 2));
            token_list_deinit(&ids);
        }
    }
}

static void test_small(void **state) {
    (void)state;
    for (size_t k = 0; k < sizeof small / sizeof *small; k++) {
        ls_tokenizer *tokenizer = open_tokenizer(small[k][0]);
        json_doc golden = {0};
        if (tokenizer == NULL) {
            continue;
        }
        assert_int_equal(json_doc_read(&golden, small[k][1], 1 << 20, NULL), LS_OK);
        const json_t *with = json_object_get(golden.root, "encode"), *plain = json_object_get(golden.root, "plain");
        assert_true(json_array_size(with) > 60 && json_array_size(plain) > 10);
        check_rows(tokenizer, with, TOKENIZER_PARSE_SPECIAL | TOKENIZER_ADD_SPECIAL, true);
        check_rows(tokenizer, plain, 0, false);
        json_doc_deinit(&golden);
        tokenizer_close(&tokenizer);
    }
}

static uint64_t hash_decoded(uint64_t hash, const ls_tokenizer *tokenizer, const token_list *ids, bool backwards,
                             bool skip_special) {
    detokenizer d;
    text_buffer out = {0};
    detokenizer_init(&d, tokenizer, skip_special);
    for (size_t i = 0; i < ids->n; i++) {
        assert_int_equal(detokenizer_push(&d, ids->id[backwards ? ids->n - 1 - i : i], &out, NULL), LS_OK);
    }
    assert_int_equal(detokenizer_flush(&d, &out, NULL), LS_OK);
    hash = hash_more(hash, out.data, out.n);
    text_buffer_deinit(&out);
    return hash;
}

static uint64_t hash_ids(uint64_t hash, const token_list *ids) {
    for (size_t i = 0; i < ids->n; i++) {
        hash = hash_word(hash, (uint32_t)ids->id[i]);
    }
    return hash;
}

static uint64_t hash_string(uint64_t hash, const ls_tokenizer *tokenizer, const text_buffer *text) {
    token_list ids =
        encode(tokenizer, text->data, text->n, TOKENIZER_PARSE_SPECIAL | TOKENIZER_ADD_SPECIAL | TOKENIZER_SPANS);
    token_list plain = encode(tokenizer, text->data, text->n, 0);
    hash = hash_ids(hash, &ids);
    for (size_t i = 0; i < ids.n; i++) {
        hash = hash_word(hash_word(hash, ids.span[i].start), ids.span[i].end);
    }
    hash = hash_ids(hash, &plain);
    hash = hash_decoded(hash, tokenizer, &ids, false, false);
    hash = hash_decoded(hash, tokenizer, &plain, true, true);
    token_list_deinit(&ids);
    token_list_deinit(&plain);
    return hash;
}

static void check_large(const char *path, const json_t *hashes) {
    ls_tokenizer *tokenizer = open_tokenizer(path);
    text_buffer text = {0};
    if (tokenizer == NULL) {
        return;
    }
    assert_int_equal(json_array_size(hashes), 100);
    for (uint64_t group = 0; group < 100; group++) {
        uint64_t hash = HASH_START;
        for (uint64_t i = 100 * group; i < 100 * group + 100; i++) {
            token_string(i, &text);
            hash = hash_string(hash, tokenizer, &text);
        }
        char got[17];
        snprintf(got, sizeof got, "%016llx", (unsigned long long)hash);
        if (strcmp(got, json_string_value(json_array_get(hashes, (size_t)group))) != 0) {
            fail_msg("%s: strings %d .. %d differ", path, (int)group * 100, (int)group * 100 + 99);
        }
    }
    text_buffer_deinit(&text);
    tokenizer_close(&tokenizer);
}

static void test_large(void **state) {
    (void)state;
    json_doc golden = {0};
    const char *path;
    json_t *hashes;
    int n = 0;
    assert_int_equal(json_doc_read(&golden, LARGE, 1 << 20, NULL), LS_OK);
    json_object_foreach(golden.root, path, hashes) {
        if (json_is_array(hashes)) {
            check_large(path, hashes);
            n++;
        }
    }
    assert_int_equal(n, 10);
    json_doc_deinit(&golden);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_small), cmocka_unit_test(test_large)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
