/*
 * The examples, built against the public header alone: generate.c continues the demo on two ranks and fails with a reason;
 * stream.c runs several prompts in an engine with a thread of its own.
 */
#include "e2e.h"

/* Runs BUILD/examples/generate with these words of shell behind it; its output and, in *code, its exit code. */
static void run_example(const char *words, char *out, size_t out_bytes, int *code) {
    char build[PATH_BYTES];
    build_folder(build);
    *code = shell(out, out_bytes, "%s/examples/generate %s", build, words);
}

static void continues_the_demo(void **state) {
    (void)state;
    char out[4096];
    int code;
    run_example("demo 'Once upon a time'", out, sizeof out, &code);
    if (code != 0) {
        fail_msg("exit code %d: %s", code, out);
    }
    job alone = {.text = "Once upon a time", .max_tokens = 64, .stop_at_eos = true};
    ls_model *model = demo_model();
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    ls_engine *engine = engine_open(model, &params);
    jobs_run(engine, &alone, 1);
    char wanted[4096];
    snprintf(wanted, sizeof wanted, "%s\n(%d tokens, length)\n", alone.answer, alone.n_token);
    assert_string_equal(out, wanted);
    jobs_clear(&alone, 1);
    ls_engine_close(&engine);
    ls_model_close(&model);
}

static void fails_with_a_reason(void **state) {
    (void)state;
    char out[4096];
    int code;
    run_example("", out, sizeof out, &code);
    assert_int_equal(code, 2);
    assert_non_null(strstr(out, "usage:"));
    run_example("/nowhere 'Once'", out, sizeof out, &code);
    assert_int_equal(code, 1);
    assert_non_null(strstr(out, "/nowhere: no such folder"));
    run_example("demo ''", out, sizeof out, &code);
    assert_int_equal(code, 1);
    assert_non_null(strstr(out, "empty prompt"));
}

static void streams_several_prompts(void **state) {
    (void)state;
    static const char *const prompts[] = {"Once upon a time", "The cat", "A dragon"};
    ls_model *model = demo_model();
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    ls_engine *engine = engine_open(model, &params);
    char build[PATH_BYTES], out[4096];
    build_folder(build);
    for (size_t i = 0; i < COUNT(prompts); i++) {
        job alone = {.text = prompts[i], .max_tokens = 32, .stop_at_eos = true};
        jobs_run(engine, &alone, 1);
        SHELL(out, "%s/examples/stream demo '%s' '%s' '%s' | sed -n 's/^%zu: //p' | sed '$d' | tr -d '\\n'", build,
              prompts[0], prompts[1], prompts[2], i + 1);
        assert_true(alone.n_answer > 32);
        for (char *c = alone.answer; (c = strchr(c, '\n')) != NULL;) {
            memmove(c, c + 1, strlen(c)); /* pieces end with newlines of the example's own; they go with the text's */
        }
        assert_string_equal(out, alone.answer);
        jobs_clear(&alone, 1);
    }
    ls_engine_close(&engine);
    ls_model_close(&model);
    SHELL(out, "%s/examples/stream demo 'The cat' 'A dragon' | grep -cE '^[12]: \\(32 tokens, length\\)$'", build);
    assert_string_equal(out, "2\n");
    assert_int_equal(shell(out, sizeof out, "%s/examples/stream demo 'The cat' ''", build), 1);
    assert_non_null(strstr(out, "empty prompt"));
    assert_int_equal(shell(out, sizeof out, "%s/examples/stream demo", build), 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(continues_the_demo),
        cmocka_unit_test(fails_with_a_reason),
        cmocka_unit_test(streams_several_prompts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
