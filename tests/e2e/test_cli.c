/*
 * The command line tool (LS_BIN), as a user meets it: exit codes (0 good, 1 failed, 2 usage), what goes to stdout and to
 * stderr, flags and environment, --json, output that cannot be written.
 */
#include <math.h>

#include "base/options.h"
#include "cli_run.h"

static void usage(void **state) {
    (void)state;
    expect(CLI("--version"), 0, ">lockstep " LS_VERSION "\n");
    expect(CLI("--help"), 0, ">generate");
    expect(CLI("help"), 0, ">usage: lockstep COMMAND");
    expect(CLI("help", "help"), 0, ">usage: lockstep COMMAND");
    expect(CLI("help", "--help"), 0, ">usage: lockstep COMMAND");
    expect(CLI("help", "generate"), 0, ">--tensor-parallel-size");
    expect(CLI("help", "fly"), 2, "unknown command 'fly'");
    expect(CLI("help", "generate", "chat"), 2, "unexpected argument 'chat'");
    expect((cli_run){.folder = NULL}, 2, "usage: lockstep COMMAND");
    expect(CLI("generaet"), 2, "unknown command 'generaet'");
    expect(CLI("--frobnicate"), 2, "--frobnicate");
    expect(CLI("generate", "--help"), 0, ">--tensor-parallel-size");
    expect(CLI("generate", "--help"), 0, ">LOCKSTEP_TOP_K");
    for (int i = 0; i < COMMAND_COUNT; i++) { /* -h is no beginning of --host or --html */
        expect(CLI(command_table[i].name, "-h"), 0, ">sage: lockstep");
    }
    expect(CLI("generate"), 2, "-p TEXT");
    expect(CLI("generate", "-p", "a"), 2, "-m FOLDER");
    expect(CLI(DEMO), 2, "-p TEXT");
    expect(CLI(DEMO, "-p", "a", "--frobnicate"), 2, "--frobnicate");
    expect(CLI(DEMO, "-p", "a", "-Q"), 2, "Q");
    expect(CLI(DEMO, "-p", "a", "stray"), 2, "stray");
    expect(CLI(DEMO, "-p", "a", "-tp"), 2, "-tp");
}

static void values_out_of_range(void **state) {
    (void)state;
    expect(CLI(DEMO, "-p", "a", "-n", "many"), 2, "--max-tokens many");
    expect(CLI(DEMO, "-p", "a", "-n", "-1"), 2, "--max-tokens -1");
    expect(CLI(DEMO, "-p", "a", "--temp", "101"), 2, "--temp 101");
    expect(CLI(DEMO, "-p", "a", "--temp", "nan"), 2, "--temp nan");
    expect(CLI(DEMO, "-p", "a", "--temp", "1e-5"), 2, "temperature 1e-05");
    expect(CLI(DEMO, "-p", "a", "--top-p", "1.5"), 2, "--top-p 1.5");
    expect(CLI(DEMO, "-p", "a", "-tp", "3"), 2, "--tensor-parallel-size 3: must be 1, 2, 4 or 8");
    expect(CLI(DEMO, "-p", "a", "--tensor-parallel-size", "9"), 2, "--tensor-parallel-size 9");
    expect(CLI(DEMO, "-p", "a", "--dtype", "f64"), 2, "--dtype f64: must be one of auto|f32|bf16|f16");
    expect(CLI(DEMO, "-p", "a", "--load-format", "gguf"), 2, "--load-format gguf");
    expect(CLI(DEMO, "-p", "", "-n", "1"), 2, "empty prompt");
    expect(CLI(DEMO, "-p", "a", "-p", ""), 2, "prompt 2: empty prompt");
    expect(CLI(DEMO, "-p", "a", "-n", "5000"), 1, "context of 2048 tokens");
    expect(CLI("generate", "-m", "/nowhere", "-p", "a"), 1, "/nowhere: no such folder");
    cli_run verbose = CLI("generate", "-m", "/nowhere", "-p", "a", "-v");
    cli(&verbose);
    assert_code(&verbose, 1);
    assert_non_null(strstr(verbose.err, "LS_ENOTFOUND at src/"));
    cli_free(&verbose);
}

static void environment(void **state) {
    (void)state;
    cli_run bad = CLI(DEMO, "-p", "a", "-n", "1");
    bad.env[0] = "LOCKSTEP_TEMP=1000";
    expect(bad, 2, "LOCKSTEP_TEMP 1000: must be from 0 to 100");
    bad.env[0] = "LOCKSTEP_TENSOR_PARALLEL_SIZE=two";
    expect(bad, 2, "LOCKSTEP_TENSOR_PARALLEL_SIZE two: expected an integer");
    bad.env[0] = "LOCKSTEP_DTYPE=int8";
    expect(bad, 2, "LOCKSTEP_DTYPE int8: must be one of");
    bad.env[0] = "LOCKSTEP_MAX_MODEL_LEN=4";
    bad.args[6] = "8";
    expect(bad, 1, "context of 4 tokens");
}

/* ---- Generating ---- */

/* The whole of a line but for nothing: tokens, text, hash. */
static bool same_answer(const json_t *a, const json_t *b) {
    static const char *const keys[] = {"prompt", "text", "tokens", "logits_hash", "finish_reason", "prompt_tokens"};
    bool same = true;
    for (size_t i = 0; i < COUNT(keys); i++) {
        assert_non_null(json_object_get(a, keys[i]));
        same = same && json_equal(json_object_get(a, keys[i]), json_object_get(b, keys[i]));
    }
    return same;
}

static void assert_timeline(const json_t *line, int n_ranks, int n_threads, const char *dtype) {
    const json_t *t = json_object_get(line, "timeline");
    assert_non_null(t);
    assert_true(number_of(t, "ranks") == n_ranks && number_of(t, "threads_per_rank") == n_threads);
    assert_string_equal(json_string_value(json_object_get(t, "dtype")), dtype);
    static const char *const positive[] = {"load_us",
                                           "plan_us",
                                           "shard_us",
                                           "prefill_us",
                                           "decode_us",
                                           "tokens_per_s",
                                           "ms_per_token",
                                           "weight_bytes_per_step",
                                           "read_gb_per_s",
                                           "prefill_steps",
                                           "decode_steps",
                                           "kv_bytes_per_step",
                                           "weights_memory_bytes",
                                           "kv_memory_bytes",
                                           "other_memory_bytes"};
    for (size_t i = 0; i < COUNT(positive); i++) {
        if (!(number_of(t, positive[i]) > 0)) {
            fail_msg("timeline: %s is %g", positive[i], number_of(t, positive[i]));
        }
    }
    double weights = number_of(t, "weight_bytes_per_step"), kv = number_of(t, "kv_bytes_per_step");
    double ratio = number_of(t, "limit_ratio");
    double step_ms = number_of(t, "decode_us") / 1000 / number_of(t, "decode_steps");
    double limit_ms = (weights + kv) / number_of(t, "read_gb_per_s") / 1e6;
    assert_true(ratio > 0 && ratio <= 1.5);
    assert_true(fabs(number_of(t, "limit_ms_per_step") / limit_ms - 1) < 1e-3);
    assert_true(fabs(ratio / (limit_ms / step_ms) - 1) < 1e-2);
    assert_true(fabs(number_of(t, "ms_per_token") / step_ms - 1) < 1e-2);
    assert_true(number_of(t, "weights_memory_bytes") >= weights);
    assert_true(number_of(t, "exchanges_per_step") == 17); /* 8 layers, twice each, and the embedding */
    assert_true(number_of(t, "exchange_us") <= number_of(t, "decode_us"));
    assert_true(number_of(t, "decode_host_us") > 0 && number_of(t, "prefill_host_us") >= 0);
}

static void json_output(void **state) {
    (void)state;
    json_lines one = generate(CLI(DEMO, "-p", "Once upon a time", "-n", "12", "--temp", "0", "-t", "2"), 0);
    assert_int_equal(one.n, 2);
    assert_string_equal(text_of(&one, 0, "prompt"), "Once upon a time");
    assert_string_equal(text_of(&one, 0, "text"), ", there was a little girl named Lily. She loved to");
    assert_string_equal(text_of(&one, 0, "finish_reason"), "length");
    assert_int_equal(strlen(text_of(&one, 0, "logits_hash")), 16);
    assert_int_equal(json_array_size(json_object_get(one.line[0], "tokens")), 12);
    assert_true(number_of(one.line[0], "prompt_tokens") == 4);
    assert_timeline(one.line[1], 1, 2, "bf16");
    assert_true(number_of(json_object_get(one.line[1], "timeline"), "decode_tokens") == 11);
    assert_true(number_of(json_object_get(one.line[1], "timeline"), "prefill_tokens") == 4);

    cli_run forms[] = {CLI(DEMO, "-p", "Once upon a time", "-n12", "--temp=0", "-tp", "4", "-t", "1"),
                       CLI(DEMO, "--prompt", "Once upon a time", "--max-tokens", "12", "--temperature", "0",
                           "--tensor-parallel-size", "4", "--threads", "1"),
                       CLI("generate", "--model=demo", "-p", "Once upon a time", "--predict", "12", "-top-k", "1",
                           "-tp=4", "-t1", "-s", "3")};
    for (size_t i = 0; i < COUNT(forms) - (sanitized() ? 2 : 0); i++) {
        json_lines other = generate(forms[i], 0);
        assert_int_equal(other.n, 2);
        assert_true(same_answer(one.line[0], other.line[0]));
        assert_timeline(other.line[1], 4, 1, "bf16");
        assert_int_equal(number_of(other.line[1], "seed") == 3, i == 2);
        lines_free(&other);
    }
    lines_free(&one);
}

static void batches_keep_their_order(void **state) {
    (void)state;
    static const char *const prompts[] = {"The robot wanted to learn how to dance.", "a", "One day, a small bird", "a"};
    json_lines batch = generate(CLI(DEMO, "-p", prompts[0], "-p", prompts[1], "-p", prompts[2], "-p", prompts[3], "-n",
                                    "9", "-s", "5", "--temp", "0.9", "--max-num-seqs", "2"),
                                0);
    assert_int_equal(batch.n, 5);
    for (size_t i = 0; i < 4; i++) {
        assert_string_equal(text_of(&batch, i, "prompt"), prompts[i]);
    }
    assert_true(same_answer(batch.line[1], batch.line[3]));
    assert_false(json_equal(json_object_get(batch.line[0], "tokens"), json_object_get(batch.line[1], "tokens")));
    json_lines alone = generate(CLI(DEMO, "-p", prompts[2], "-n", "9", "-s", "5", "--temp", "0.9"), 0);
    assert_true(same_answer(batch.line[2], alone.line[0]));
    json_lines other = generate(CLI(DEMO, "-p", prompts[2], "-n", "9", "-s", "6", "--temp", "0.9"), 0);
    assert_false(same_answer(batch.line[2], other.line[0]));
    cli_run text = CLI(DEMO, "-p", prompts[0], "-p", prompts[2], "-n", "9", "-s", "5", "--temp", "0.9");
    cli(&text);
    assert_code(&text, 0);
    char wanted[1024];
    snprintf(wanted, sizeof wanted, "[1] %s%s\n[2] %s%s\n", prompts[0], text_of(&batch, 0, "text"), prompts[2],
             text_of(&batch, 2, "text"));
    assert_string_equal(text.out, wanted);
    assert_non_null(strstr(text.err, "ratio")); /* the timeline */
    cli_free(&text);
    lines_free(&other);
    lines_free(&alone);
    lines_free(&batch);
}

static void flags_win_over_the_environment(void **state) {
    (void)state;
    json_lines plain = generate(CLI(DEMO, "-p", "The", "-n", "6", "--temp", "0"), 0);
    cli_run run = CLI("generate", "-p", "The", "-n", "6");
    run.env[0] = "LOCKSTEP_TEMP=0";
    run.env[1] = "LOCKSTEP_MODEL=demo";
    run.env[2] = "LOCKSTEP_MAX_TOKENS=2";
    json_lines from_env = generate(run, 0);
    assert_true(same_answer(plain.line[0], from_env.line[0]));
    run = CLI(DEMO, "-p", "The", "-n", "6", "--temp", "0");
    run.env[0] = "LOCKSTEP_TEMP=50";
    run.env[1] = "LOCKSTEP_MODEL=/nowhere";
    run.env[2] = "LOCKSTEP_PROMPT=Not this one";
    json_lines flags = generate(run, 0);
    assert_int_equal(flags.n, 2);
    assert_true(same_answer(plain.line[0], flags.line[0]));
    lines_free(&plain);
    lines_free(&from_env);
    lines_free(&flags);
}

static void odd_prompts(void **state) {
    (void)state;
    json_lines control = generate(CLI(DEMO, "-p", "a\x01\x1b[0m\t\"\\\r\n\x7f z", "-n", "4", "--temp", "0"), 0);
    assert_string_equal(text_of(&control, 0, "prompt"), "a\x01\x1b[0m\t\"\\\r\n\x7f z");
    assert_int_equal(json_array_size(json_object_get(control.line[0], "tokens")), 4);
    lines_free(&control);
    /* Bytes that are no UTF-8 read as U+FFFD; the answer is whole, though the prompt cannot stand in JSON. */
    json_lines bad = generate(CLI(DEMO, "-p", "a\xff\xc3(\xed\xa0\x80 z", "-n", "4", "--temp", "0"), 0);
    assert_int_equal(bad.n, 2);
    assert_non_null(json_object_get(bad.line[0], "prompt"));
    assert_int_equal(json_array_size(json_object_get(bad.line[0], "tokens")), 4);
    assert_true(strlen(text_of(&bad, 0, "text")) > 0);
    lines_free(&bad);
}

static void demo_is_found_from_elsewhere(void **state) {
    (void)state;
    cli_run run = CLI(DEMO, "-p", "The", "-n", "2", "--temp", "0");
    run.folder = "/";
    expect(run, 0, ">The");
    char folder[PATH_BYTES];
    folder_make(folder); /* a folder named demo there is not the built-in model: it is named by a path */
    run.folder = folder;
    expect(run, 0, ">The");
    run.args[2] = "./demo";
    expect(run, 1, "./demo: no such folder");
    folder_remove(folder);
}

#define HI "[{\"role\": \"user\", \"content\": \"Hi\"}]"

static void tokens_of_a_text(void **state) {
    (void)state;
    expect(CLI("tokenize", "-m", "demo", "-p", "a <|im_end|>"), 0, ">       2       2..12      \"<|im_end|>\"\n");
    expect(CLI("tokenize", "-m", "demo", "--json", "-p", "a <|im_end|>"), 0, ">,2],\"pieces\":[");
    expect(CLI("tokenize", "-m", "demo", "--json", "-p", "<|im_end|>"), 0,
           ">{\"text\":\"<|im_end|>\",\"tokens\":[2],\"pieces\":[\"<|im_end|>\"],\"spans\":[[0,10]]}\n");
    expect(CLI("tokenize", "-m", "demo", "--no-parse-special", "-p", "<|im_end|>"), 0, ">\"<\"");
    expect(CLI("tokenize", "-m", "demo"), 2, "needs a model and a text");
    expect(CLI("tokenize", "-m", "/nowhere", "-p", "a"), 1, "/nowhere/tokenizer.json");
    expect(CLI("tokenize", "-m", "demo", "-p", "a", "--top-k", "3"), 2, "--top-k");
}

static void what_the_template_writes(void **state) {
    (void)state;
    expect(CLI("template", "-m", "demo", "--messages", HI), 0,
           "><|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    expect(CLI("template", "-m", "demo", "--messages", HI, "--json"), 0, ">assistant\\n\",\"tokens\":[1,");
    expect(CLI("template", "-m", "demo", "--messages", "@/nowhere.json"), 1, "/nowhere.json");
    expect(CLI("template", "-m", "demo", "--messages", "[{]"), 1, "messages: not valid JSON");
    expect(CLI("template", "-m", "demo", "--messages", HI, "--chat-template-name", "rag"), 1, "rag");
    expect(CLI("template", "-m", "demo"), 2, "needs a model and messages");
}

static void output_that_cannot_be_written(void **state) {
    (void)state;
    cli_run runs[] = {CLI(DEMO, "-p", "The", "-n", "2"), CLI(DEMO, "-p", "The", "-n", "2", "--json"),
                      CLI(DEMO, "-p", "The", "-p", "a", "-n", "2"), CLI("--version"), CLI("--help")};
    for (size_t i = 0; i < COUNT(runs); i++) {
        runs[i].stdout_path = "/dev/full";
        expect(runs[i], 1, "standard output: No space left on device");
        runs[i].stdout_path = "-";
        expect(runs[i], 1, "standard output");
    }
}

static void dummy_model_by_name(void **state) {
    (void)state;
    if (sanitized()) {
        skip();
    }
    json_lines lines = generate(CLI("generate", "-m", "Qwen/Qwen3-0.6B", "--load-format", "dummy", "-p", "hi", "-n",
                                    "3", "--max-model-len", "64", "--temp", "0"),
                                0);
    assert_int_equal(lines.n, 2);
    assert_int_equal(json_array_size(json_object_get(lines.line[0], "tokens")), 3);
    const json_t *t = json_object_get(lines.line[1], "timeline");
    double bytes = number_of(t, "weight_bytes_per_step"); /* 596 M parameters in bf16, the norms in f32 */
    assert_true(bytes > 2 * 595.7e6 && bytes < 2 * 596.3e6);
    assert_true(number_of(t, "limit_ratio") > 0 && number_of(t, "limit_ratio") <= 1.5);
    lines_free(&lines);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(usage),
        cmocka_unit_test(values_out_of_range),
        cmocka_unit_test(environment),
        cmocka_unit_test(json_output),
        cmocka_unit_test(batches_keep_their_order),
        cmocka_unit_test(flags_win_over_the_environment),
        cmocka_unit_test(odd_prompts),
        cmocka_unit_test(demo_is_found_from_elsewhere),
        cmocka_unit_test(tokens_of_a_text),
        cmocka_unit_test(what_the_template_writes),
        cmocka_unit_test(output_that_cannot_be_written),
        cmocka_unit_test(dummy_model_by_name),
    };
    return cmocka_run_group_tests(tests, cli_find_program, NULL);
}
