/* Errors: names and texts of every status, how text is set, prefixed and cut, and the way that TRY notes. */
#include "base/error.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

static void every_status_has_a_name_and_a_text(void **state) {
    (void)state;
    static const ls_status all[] = {
#define X(name, value, text) name,
        LS_STATUS_MAP(X)
#undef X
    };
    int n_negative = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        assert_memory_equal(ls_status_name(all[i]), "LS_", 3);
        assert_true(strlen(ls_status_text(all[i])) > 1);
        n_negative += all[i] < 0;
        for (size_t j = 0; j < i; j++) {
            assert_int_not_equal(all[i], all[j]);
            assert_string_not_equal(ls_status_name(all[i]), ls_status_name(all[j]));
            assert_string_not_equal(ls_status_text(all[i]), ls_status_text(all[j]));
        }
    }
    assert_int_equal(n_negative, 12);
    assert_string_equal(ls_status_name(LS_ENOMEM), "LS_ENOMEM");
    assert_string_equal(ls_status_text(LS_ENOMEM), "out of memory");
    assert_string_equal(ls_status_name((ls_status)-99), "LS_UNKNOWN");
    assert_string_equal(ls_status_text((ls_status)99), "unknown status");
    assert_int_equal(LS_OK, 0);
    assert_true(LS_IDLE > 0);
}

static void enums_and_versions(void **state) {
    (void)state;
    static const char *const dtypes[] = {"auto", "f32", "bf16", "f16", "int8", "unknown"};
    static const size_t bytes[] = {0, 4, 2, 2, 1, 0};
    for (int i = 0; i < 6; i++) {
        assert_string_equal(ls_dtype_name((ls_dtype)i), dtypes[i]);
        assert_int_equal(ls_dtype_bytes((ls_dtype)i), bytes[i]);
    }
    static const char *const methods[] = {"none", "w8a16", "w8a8", "unknown"};
    for (int i = 0; i < 4; i++) {
        assert_string_equal(ls_quantization_name((ls_quantization)i), methods[i]);
    }
    static const char *const finishes[] = {"running", "stop", "length", "error", "cancelled", "unknown"};
    for (int i = 0; i < 6; i++) {
        assert_string_equal(ls_finish_name((ls_finish)i), finishes[i]);
    }
    assert_string_equal(ls_finish_name((ls_finish)-1), "unknown");
    assert_int_equal(ls_abi_version(), LS_ABI_VERSION);
    assert_string_equal(ls_version(), LS_VERSION);
}

static void set_writes_status_and_text(void **state) {
    (void)state;
    ls_error err = {.trace = "left from before"};
    assert_int_equal(error_set(&err, LS_EIO, "%s: element %d", "file", 7), LS_EIO);
    assert_int_equal(err.status, LS_EIO);
    assert_string_equal(err.text, "file: element 7");
    assert_string_equal(err.trace, "");
    error_set(&err, LS_EFORMAT, "again (%s)", err.text); /* its own text may be an argument */
    assert_string_equal(err.text, "again (file: element 7)");
    assert_int_equal(error_set(NULL, LS_EIO, "nobody reads %d", 1), LS_EIO);
}

static void long_text_is_cut(void **state) {
    (void)state;
    struct {
        ls_error err;
        char guard[16];
    } it;
    char text[2000];
    memset(&it, 'g', sizeof it);
    memset(text, 'x', sizeof text);
    text[sizeof text - 1] = '\0';
    error_set(&it.err, LS_EIO, "%s", text);
    assert_int_equal(strlen(it.err.text), sizeof it.err.text - 1);
    error_prefix(&it.err, LS_EIO, "%s", "prefix");
    assert_memory_equal(it.err.text, "prefix: xxx", 11);
    assert_int_equal(strlen(it.err.text), sizeof it.err.text - 1);
    error_prefix(&it.err, LS_EIO, "%s", text); /* a prefix that leaves no room */
    assert_int_equal(strlen(it.err.text), sizeof it.err.text - 1);
    for (int i = 0; i < 100; i++) {
        error_trace(&it.err, "some/file.c", i);
    }
    assert_int_equal(strlen(it.err.trace), sizeof it.err.trace - 1);
    for (size_t i = 0; i < sizeof it.guard; i++) {
        assert_int_equal(it.guard[i], 'g');
    }
}

static void prefix_goes_before(void **state) {
    (void)state;
    ls_error err = {0};
    error_set(&err, LS_ENOTFOUND, "no such tensor");
    assert_int_equal(error_prefix(&err, LS_ENOTFOUND, "shard %d of %s", 3, "model"), LS_ENOTFOUND);
    assert_string_equal(err.text, "shard 3 of model: no such tensor");
    assert_int_equal(err.status, LS_ENOTFOUND);
    assert_int_equal(error_prefix(NULL, LS_EIO, "x"), LS_EIO);
}

static ls_status cause(ls_status st, ls_error *err) {
    return st == LS_OK || st == LS_IDLE ? st : error_set(err, st, "the cause");
}

static int line_of_try;

static ls_status passes_on(ls_status st, bool *went_on, ls_error *err) {
    line_of_try = __LINE__ + 1;
    TRY(cause(st, err));
    *went_on = true;
    return LS_OK;
}

static ls_status passes_on_by_goto(ls_status wanted, bool *cleaned_up, ls_error *err) {
    ls_status st = LS_OK;
    bool went_on = false;
    TRY_GOTO(passes_on(wanted, &went_on, err), fail);
    return LS_OK;
fail:
    *cleaned_up = true;
    return st;
}

static void try_returns_and_notes_the_way(void **state) {
    (void)state;
    ls_error err = {0};
    bool flag = false;
    char wanted[128];
    assert_int_equal(passes_on(LS_EIO, &flag, &err), LS_EIO);
    assert_false(flag);
    snprintf(wanted, sizeof wanted, "%s:%d", __FILE__, line_of_try);
    assert_string_equal(err.trace, wanted);
    assert_string_equal(err.text, "the cause");
    err = (ls_error){0};
    assert_int_equal(passes_on_by_goto(LS_ENOMEM, &flag, &err), LS_ENOMEM);
    assert_true(flag);
    assert_memory_equal(err.trace, wanted, strlen(wanted));
    assert_non_null(strstr(err.trace, " < "));
    flag = false;
    assert_int_equal(passes_on(LS_IDLE, &flag, &err), LS_OK); /* a positive status is no failure */
    assert_true(flag);
    assert_int_equal(passes_on(LS_EIO, &flag, NULL), LS_EIO);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_status_has_a_name_and_a_text),
        cmocka_unit_test(enums_and_versions),
        cmocka_unit_test(set_writes_status_and_text),
        cmocka_unit_test(long_text_is_cut),
        cmocka_unit_test(prefix_goes_before),
        cmocka_unit_test(try_returns_and_notes_the_way),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
