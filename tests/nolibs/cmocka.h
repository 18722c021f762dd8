/*
 * The part of cmocka's interface that tests/kern uses, for machines whose cmocka we do not have: `make check-aarch64`
 * builds the kernel tests with it. A failure ends the program.
 */
#ifndef LS_TESTS_NOLIBS_CMOCKA_H
#define LS_TESTS_NOLIBS_CMOCKA_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void (*CMUnitTestFunction)(void **state);
typedef int (*CMFixtureFunction)(void **state);

struct CMUnitTest {
    const char *name;
    CMUnitTestFunction test_func;
    CMFixtureFunction setup_func, teardown_func;
    void *initial_state;
};

#define cmocka_unit_test(function)                                                                                     \
    { #function, function, NULL, NULL, NULL }
#define print_message printf
#define print_error(...) fprintf(stderr, __VA_ARGS__)
#define fail_msg(...) (fprintf(stderr, __VA_ARGS__), fputc('\n', stderr), exit(1))
#define assert_true(condition) ((condition) ? (void)0 : fail_msg("%s:%d: %s", __FILE__, __LINE__, #condition))
#define assert_false(condition) assert_true(!(condition))
#define assert_int_equal(a, b) assert_true((long long)(a) == (long long)(b))
#define assert_int_not_equal(a, b) assert_true((long long)(a) != (long long)(b))
#define assert_ptr_equal(a, b) assert_true((const void *)(a) == (const void *)(b))
#define assert_non_null(a) assert_true((a) != NULL)
#define assert_null(a) assert_true((a) == NULL)
#define assert_memory_equal(a, b, bytes) assert_true(memcmp(a, b, bytes) == 0)

static inline int _cmocka_run_group_tests(const char *name, const struct CMUnitTest *test, size_t n,
                                          CMFixtureFunction setup, CMFixtureFunction teardown) {
    void *state = NULL;
    int bad = setup != NULL && setup(&state) != 0;
    for (size_t i = 0; i < n && !bad; i++) {
        state = test[i].initial_state;
        test[i].test_func(&state);
    }
    bad |= teardown != NULL && teardown(&state) != 0;
    printf("%s: %zu passed\n", name, n);
    return bad;
}
#define cmocka_run_group_tests(tests, setup, teardown)                                                                 \
    _cmocka_run_group_tests(#tests, tests, sizeof(tests) / sizeof *(tests), setup, teardown)

#endif
