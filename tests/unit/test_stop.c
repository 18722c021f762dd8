/* Stop strings: every way to cut a text into pieces gives what a plain search over the growing text gives. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "text/stop.h"

static void init(stop_matcher *m, const char *const *string, size_t n, bool include_stop) {
    size_t n_bytes[STOP_MAX_STRINGS];
    for (size_t i = 0; i < n; i++) {
        n_bytes[i] = strlen(string[i]);
    }
    assert_int_equal(stop_init(m, string, n_bytes, n, include_stop, NULL), LS_OK);
}

/* Feeds a text in pieces of `piece` bytes. */
static text_buffer run(stop_matcher *m, const char *text, size_t piece) {
    text_buffer out = {0};
    assert_int_equal(text_buffer_append(&out, "", 0, NULL), LS_OK);
    for (size_t at = 0, n = strlen(text); at < n; at += piece) {
        assert_int_equal(stop_push(m, text + at, n - at < piece ? n - at : piece, &out, NULL), LS_OK);
    }
    assert_int_equal(stop_flush(m, &out, NULL), LS_OK);
    return out;
}

static void check(const char *const *string, size_t n, bool include_stop, const char *text, const char *expected,
                  int found) {
    stop_matcher m;
    init(&m, string, n, include_stop);
    for (size_t piece = 1; piece <= strlen(text) + 1; piece++) {
        stop_reset(&m);
        text_buffer out = run(&m, text, piece);
        assert_string_equal(out.data, expected);
        assert_int_equal(m.found, found);
        text_buffer_deinit(&out);
    }
    stop_deinit(&m);
}

#define CHECK(include_stop, text, expected, found, ...)                                                                \
    check((const char *const[]){__VA_ARGS__}, sizeof((const char *const[]){__VA_ARGS__}) / sizeof(char *),             \
          include_stop, text, expected, found)

static void test_cases(void **state) {
    (void)state;
    CHECK(false, "one END two", "one ", 0, "END");
    CHECK(true, "one END two", "one END", 0, "END");
    CHECK(false, "one EN two", "one EN two", -1, "END");
    CHECK(false, "one EN", "one EN", -1, "END");
    CHECK(false, "ENEND", "EN", 0, "END");
    CHECK(false, "aabaac", "aab", 0, "aac");
    CHECK(false, "xabcabd", "xabc", 0, "abd");
    CHECK(false, "\nUser: hi", "", 1, "User:", "\n");
    CHECK(false, "say hers", "say ", 0, "hers", "he loves", "she sells");
    CHECK(false, "she", "s", 1, "she sells", "he"); /* inside a longer one that does not come */
    CHECK(false, "abcd", "", 0, "abc", "bc", "c");  /* they end together: the longest */
    CHECK(true, "abcd", "abc", 0, "abc", "bc", "c");
    CHECK(false, "abcd", "", 1, "abcd", "ab");       /* what ends first wins */
    CHECK(true, "xbcd", "xbc", 1, "abc", "bc", "c"); /* with text before it held back */
    CHECK(false, "aaa", "", 0, "a", "a");
    CHECK(false, "caf\u00E9 \u4F60\u597D!", "caf\u00E9 ", 0, "\u4F60\u597D");
}

static void test_held_back(void **state) {
    (void)state;
    stop_matcher m;
    text_buffer out = {0};
    init(&m, (const char *const[]){"<|end|>"}, 1, false);
    assert_int_equal(stop_push(&m, "text<|e", 7, &out, NULL), LS_OK);
    assert_string_equal(out.data, "text");
    assert_int_equal(stop_push(&m, "x", 1, &out, NULL), LS_OK);
    assert_string_equal(out.data, "text<|ex");
    assert_int_equal(stop_push(&m, "<|end|>more", 11, &out, NULL), LS_OK);
    assert_int_equal(stop_push(&m, "and more", 8, &out, NULL), LS_OK); /* ignored */
    assert_int_equal(stop_flush(&m, &out, NULL), LS_OK);
    assert_string_equal(out.data, "text<|ex");
    assert_int_equal(m.found, 0);
    text_buffer_deinit(&out);
    stop_deinit(&m);
}

static void test_limits(void **state) {
    (void)state;
    stop_matcher m = {0};
    ls_error err = {0};
    static char long_one[STOP_MAX_BYTES + 1];
    const char *const none[] = {"x", ""};
    assert_int_equal(stop_init(&m, none, (const size_t[]){1, 0}, 2, false, &err), LS_EINVAL);
    assert_string_equal(err.text, "stop string 1: empty");
    const char *const too_long[] = {"x", long_one};
    assert_int_equal(stop_init(&m, too_long, (const size_t[]){1, STOP_MAX_BYTES}, 2, false, &err), LS_EINVAL);
    assert_int_equal(stop_init(&m, too_long + 1, (const size_t[]){STOP_MAX_BYTES}, 1, false, &err), LS_OK);
    stop_deinit(&m);
    assert_int_equal(stop_init(&m, none, (const size_t[]){1, 0}, STOP_MAX_STRINGS + 1, false, &err), LS_EINVAL);
    assert_int_equal(stop_init(&m, NULL, NULL, 0, false, &err), LS_OK);
    text_buffer out = run(&m, "anything", 3);
    assert_string_equal(out.data, "anything");
    text_buffer_deinit(&out);
    stop_deinit(&m);
}

/* What a search after each byte finds: the first end, there the longest. */
static void search(const char *const *string, size_t n, const char *text, bool include_stop, char *out, int *found) {
    size_t n_text = strlen(text);
    *found = -1;
    for (size_t end = 1; end <= n_text && *found < 0; end++) {
        size_t best = 0;
        for (size_t i = 0; i < n; i++) {
            size_t length = strlen(string[i]);
            if (length <= end && length > best && memcmp(text + end - length, string[i], length) == 0) {
                best = length;
                *found = (int)i;
            }
        }
        if (*found >= 0) {
            n_text = include_stop ? end : end - best;
        }
    }
    memcpy(out, text, n_text);
    out[n_text] = '\0';
}

static void test_random(void **state) {
    (void)state;
    uint32_t random = 7;
    for (int round = 0; round < 4000; round++) {
        char strings[4][8] = {{0}}, text[40] = {0}, expected[40];
        const char *list[4];
        int n_strings = 1 + round % 4, found;
        for (int i = 0; i < n_strings; i++) {
            random = random * 1664525u + 1013904223u;
            for (uint32_t k = 0; k <= (random >> 28) % 6; k++) {
                strings[i][k] = (char)('a' + (random >> (8 + 2 * k) & 1));
            }
            list[i] = strings[i];
        }
        for (size_t i = 0; i < sizeof text - 1; i++) {
            random = random * 1664525u + 1013904223u;
            text[i] = (char)('a' + (random >> 27) % 3 % 2 + ((random >> 20) % 16 == 0));
        }
        search(list, (size_t)n_strings, text, round % 2, expected, &found);
        check(list, (size_t)n_strings, round % 2, text, expected, found);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cases),
        cmocka_unit_test(test_held_back),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
