/*
 * The canary: passes, and fails when LS_CANARY=1. tests/run asks it to fail at the start of every run, so that a
 * runner, or a cmocka, that can no longer report a failure is noticed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void fails_when_asked_to(void **state) {
    (void)state;
    const char *asked = getenv("LS_CANARY");
    assert_false(asked != NULL && strcmp(asked, "1") == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(fails_when_asked_to)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
