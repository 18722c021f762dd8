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

/* Appends what lines of `out` that begin with "<number>: " say behind it, as stream.c prints pieces of text. */
static void collect_pieces(const char *out, size_t number, char *text, size_t text_bytes) {
    char mark[16];
    size_t n_mark = (size_t)snprintf(mark, sizeof mark, "%zu: ", number), n = 0;
    for (const char *line = out; *line != '\0'; line += strcspn(line, "\n"), line += *line == '\n') {
        if (strncmp(line, mark, n_mark) == 0 && strncmp(line + n_mark, "(32 tokens, length)", 19) != 0) {
            n += (size_t)snprintf(text + n, text_bytes - n, "%.*s", (int)strcspn(line + n_mark, "\n"), line + n_mark);
            assert_true(n < text_bytes);
        }
    }
}

static void streams_several_prompts(void **state) {
    (void)state;
    char build[PATH_BYTES], out[8192], text[4096];
    build_folder(build);
    SHELL(out, "%s/examples/stream demo 'Once upon a time' 'The cat' 'A dragon'", build);
    job jobs[] = {{.text = "Once upon a time", .max_tokens = 32, .stop_at_eos = true},
                  {.text = "The cat", .max_tokens = 32, .stop_at_eos = true},
                  {.text = "A dragon", .max_tokens = 32, .stop_at_eos = true}};
    ls_model *model = demo_model();
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    ls_engine *engine = engine_open(model, &params);
    jobs_run(engine, jobs, COUNT(jobs));
    for (size_t i = 0; i < COUNT(jobs); i++) {
        assert_true(jobs[i].n_answer > 32);
        for (char *c = jobs[i].answer; (c = strchr(c, '\n')) != NULL;) {
            memmove(c, c + 1, strlen(c)); /* the example's own newlines cannot be told from the text's */
        }
        collect_pieces(out, i + 1, text, sizeof text);
        assert_string_equal(text, jobs[i].answer);
        snprintf(text, sizeof text, "%zu: (32 tokens, length)\n", i + 1);
        assert_non_null(strstr(out, text));
    }
    jobs_clear(jobs, COUNT(jobs));
    ls_engine_close(&engine);
    ls_model_close(&model);
}

static void stream_fails_with_a_reason(void **state) {
    (void)state;
    char build[PATH_BYTES], out[4096];
    build_folder(build);
    assert_int_equal(shell(out, sizeof out, "%s/examples/stream demo ''", build), 1);
    assert_non_null(strstr(out, "empty prompt"));
    assert_int_equal(shell(out, sizeof out, "%s/examples/stream demo", build), 2);
    assert_non_null(strstr(out, "usage:"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(continues_the_demo),
        cmocka_unit_test(fails_with_a_reason),
        cmocka_unit_test(streams_several_prompts),
        cmocka_unit_test(stream_fails_with_a_reason),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
