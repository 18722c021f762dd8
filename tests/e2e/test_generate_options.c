/*
 * lockstep generate beyond one prompt of -p: prompts from files and standard input, repeated, several answers to each;
 * flags of sampling that are lists; log probabilities; the forms of the timeline; Ctrl-C.
 */
#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli_run.h"

#define GREEDY "--temp", "0"

static bool same(const json_lines *lines, size_t a, size_t b, const char *key) {
    const json_t *value = json_object_get(lines->line[a], key);
    assert_non_null(value);
    return json_equal(value, json_object_get(lines->line[b], key));
}

static void prompts_of_files(void **state) {
    (void)state;
    char folder[PATH_BYTES], one[PATH_BYTES + 16], two[PATH_BYTES + 16];
    folder_make(folder);
    snprintf(one, sizeof one, "%s/one", folder);
    snprintf(two, sizeof two, "%s/two", folder);
    file_write(folder, "one", "Once upon", 9);
    file_write(folder, "two", "a\0b", 3);
    cli_run run = CLI(DEMO, "-f", one, "-p", "The", "-f", two, "-f", "-", "-n", "3", GREEDY);
    run.input = "One \xff";
    json_lines lines = generate(run, 0);
    assert_int_equal(lines.n, 5);
    assert_string_equal(text_of(&lines, 0, "prompt"), "The"); /* -p first */
    assert_string_equal(text_of(&lines, 1, "prompt"), "Once upon");
    const json_t *nul = json_object_get(lines.line[2], "prompt");
    assert_int_equal(json_string_length(nul), 3);
    assert_memory_equal(json_string_value(nul), "a\0b", 3);
    assert_true(number_of(lines.line[2], "prompt_tokens") >= 3);
    assert_true(json_is_null(json_object_get(lines.line[3], "prompt"))); /* no UTF-8: read all the same */
    assert_true(number_of(lines.line[3], "prompt_tokens") >= 2);
    json_lines direct = generate(CLI(DEMO, "-p", "Once upon", "-n", "3", GREEDY), 0);
    assert_true(json_equal(lines.line[1], direct.line[0]));
    lines_free(&direct);
    lines_free(&lines);
    run = CLI(DEMO, "-f", "-", "-n", "2", GREEDY);
    run.input = "Once upon";
    expect(run, 0, ">Once upon a time");
    run = CLI(DEMO, "-f", "-", "-f", "-");
    run.input = "Once upon";
    expect(run, 2, "--prompt-file -: standard input can be read only once");
    run = CLI(DEMO, "-f", "/nowhere/a");
    expect(run, 1, "--prompt-file: /nowhere/a");
    expect(CLI(DEMO, "-f", folder), 1, folder);
    folder_remove(folder);
}

/* -f <(command), and a device that is empty. */
static void prompt_of_a_pipe(void **state) {
    (void)state;
    char folder[PATH_BYTES], pipe[PATH_BYTES + 16];
    folder_make(folder);
    snprintf(pipe, sizeof pipe, "%s/pipe", folder);
    assert_int_equal(mkfifo(pipe, 0600), 0);
    pid_t writer = fork();
    if (writer == 0) {
        int fd = open(pipe, O_WRONLY);
        bool good = write(fd, "Once ", 5) == 5 && usleep(20000) == 0 && write(fd, "upon", 4) == 4;
        _exit(good ? 0 : 1);
    }
    expect(CLI(DEMO, "-f", pipe, "-n", "2", GREEDY), 0, ">Once upon a time");
    int status;
    assert_true(waitpid(writer, &status, 0) == writer && status == 0);
    folder_remove(folder);
    expect(CLI(DEMO, "-f", "/dev/null"), 2, "empty prompt");
}

static void repeated_and_several(void **state) {
    (void)state;
    expect(CLI(DEMO, "-p", "The", "-p", "a", "--repeat-prompt", "2", "-n", "1", GREEDY, "--timeline", "none"), 0,
           ">[2] The");
    expect(CLI(DEMO, "-p", "The", "--num-return-sequences", "2", "-n", "1", GREEDY), 0, ">\n[1.2] The");
    json_lines repeated =
        generate(CLI(DEMO, "-p", "The", "-p", "a", "--repeat-prompt", "3", "-n", "4", "--temp", "1.5", "-s", "3"), 0);
    assert_int_equal(repeated.n, 7);
    for (size_t i = 1; i < 6; i++) {
        assert_true(same(&repeated, i / 3 * 3, i, "prompt"));
        assert_true(same(&repeated, i / 3 * 3, i, "tokens"));
        assert_true(number_of(repeated.line[i], "choice") == 0);
    }
    assert_false(same(&repeated, 0, 3, "prompt"));
    lines_free(&repeated);
}

/* Other draws from one seed; the first is what one answer alone would be. */
static void choices_differ(void **state) {
    (void)state;
    json_lines several =
        generate(CLI(DEMO, "-p", "The", "--num-return-sequences", "3", "-n", "8", "--temp", "1.2", "-s", "5"), 0);
    json_lines one = generate(CLI(DEMO, "-p", "The", "-n", "8", "--temp", "1.2", "-s", "5"), 0);
    assert_int_equal(several.n, 4);
    assert_true(json_equal(several.line[0], one.line[0]));
    for (size_t i = 0; i < 3; i++) {
        assert_true(number_of(several.line[i], "choice") == (double)i);
    }
    assert_false(same(&several, 0, 1, "tokens"));
    assert_false(same(&several, 1, 2, "tokens"));
    lines_free(&one);
    lines_free(&several);
}

static void lists_that_are_wrong(void **state) {
    (void)state;
    static const char *const biases[] = {"5", "5=", "=1", "5=x", "5=1x", "5=nan", "5=inf", "-1=2", "99999999999=1", ""};
    for (size_t i = 0; i < COUNT(biases); i += sanitized() ? 4 : 1) {
        char message[64];
        snprintf(message, sizeof message, "--logit-bias %s: expected ID=BIAS", biases[i]);
        expect(CLI(DEMO, "-p", "a", "--logit-bias", biases[i]), 2, message);
    }
    static const char *const ids[] = {"", ",", "1,", "1,,2", "1;2", "a", "-1", "99999999999"};
    for (size_t i = 0; i < COUNT(ids); i += sanitized() ? 4 : 1) {
        char message[64];
        snprintf(message, sizeof message, "--allowed-token-ids %s: expected token ids", ids[i]);
        expect(CLI(DEMO, "-p", "a", "--allowed-token-ids", ids[i]), 2, message);
        snprintf(message, sizeof message, "--stop-token-ids %s: expected token ids", ids[i]);
        expect(CLI(DEMO, "-p", "a", "--stop-token-ids", ids[i]), 2, message);
    }
    expect(CLI(DEMO, "-p", "a", "--logprobs", "2"), 2, "--logprobs needs --json");
    expect(CLI(DEMO, "-p", "a", "--prompt-logprobs", "2"), 2, "--prompt-logprobs needs --json");
    expect(CLI(DEMO, "-p", "a", "--logprobs", "21", "--json"), 2, "--logprobs 21: must be from 0 to 20");
    expect(CLI(DEMO, "-p", "a", "--num-return-sequences", "0"), 2, "--num-return-sequences 0");
}

/* Each flag changes greedy's ", there was a little girl" (14 400 283 261 388 454) as it says. */
static void flags_reach_the_sampler(void **state) {
    (void)state;
#define START DEMO, "-p", "Once upon a time", "-n", "6", GREEDY
    const struct {
        cli_run run;
        const char *text;
    } cases[] = {
        {CLI(START), ", there was a little girl"},
        {CLI(START, "--stop", " a little"), ", there was"},
        {CLI(START, "--stop-token-ids", "7,283"), ", there"},
        {CLI(START, "--stop", " there", "--stop", " was", "--min-tokens", "4"), ", there was a little girl"},
        {CLI(START, "--allowed-token-ids", "14,400,283", "-n", "3"), ", there was"},
        {CLI(START, "--logit-bias", "14=-inf", "--logit-bias", "438=100", "-n", "2"), " named named"},
    };
#undef START
    for (size_t i = 0; i < COUNT(cases); i += sanitized() ? 2 : 1) {
        json_lines lines = generate(cases[i].run, 0);
        assert_string_equal(text_of(&lines, 0, "text"), cases[i].text);
        lines_free(&lines);
    }
    static const char *const changes[][2] = {{"--bad-words", "girl"},
                                             {"--repetition-penalty", "50"},
                                             {"--frequency-penalty", "100"},
                                             {"--presence-penalty", "100"},
                                             {"--logit-bias", "454=-inf"}};
    json_lines plain = generate(CLI(DEMO, "-p", "Once upon a time", "-n", "40", GREEDY), 0);
    for (size_t i = 0; i < COUNT(changes); i += sanitized() ? 3 : 1) {
        json_lines lines =
            generate(CLI(DEMO, "-p", "Once upon a time", "-n", "40", GREEDY, changes[i][0], changes[i][1]), 0);
        assert_false(json_equal(lines.line[0], plain.line[0]));
        lines_free(&lines);
    }
    lines_free(&plain);
}

static void log_probabilities(void **state) {
    (void)state;
    json_lines lines = generate(CLI(DEMO, "-p", "Once upon a time", "-p", "The", "-n", "3", GREEDY, "--logprobs", "2",
                                    "--prompt-logprobs", "1", "--dtype", "f32"),
                                0);
    assert_int_equal(lines.n, 3);
    const json_t *answer = json_object_get(lines.line[0], "logprobs"), *entry;
    const json_t *prompt = json_object_get(lines.line[0], "prompt_logprobs");
    assert_int_equal(json_array_size(answer), 3);
    assert_int_equal(json_array_size(prompt), 4);
    size_t i;
    json_array_foreach(answer, i, entry) {
        const json_t *top = json_object_get(entry, "top");
        assert_int_equal(json_array_size(top), 2);
        double best = number_of(json_array_get(top, 0), "logprob"),
               second = number_of(json_array_get(top, 1), "logprob");
        assert_true(best > second && best < 0 && exp(best) + exp(second) <= 1);
        assert_true(number_of(entry, "rank") == 0 && number_of(entry, "logprob") == best); /* greedy takes the best */
        assert_true(number_of(entry, "token") == number_of(json_array_get(top, 0), "token"));
        assert_true(
            json_equal(json_object_get(entry, "token"), json_array_get(json_object_get(lines.line[0], "tokens"), i)));
    }
    assert_true(json_is_null(json_object_get(json_array_get(prompt, 0), "logprob"))); /* nothing stands before it */
    assert_true(number_of(json_array_get(prompt, 3), "logprob") < 0);
    assert_int_equal(json_array_size(json_object_get(json_array_get(prompt, 3), "top")), 1);
    lines_free(&lines);
}

static void forms_of_the_timeline(void **state) {
    (void)state;
    cli_run none = CLI(DEMO, "-p", "The", "-n", "2", GREEDY, "--timeline", "none");
    cli(&none);
    assert_code(&none, 0);
    assert_string_equal(none.err, "");
    cli_free(&none);
    cli_run json = CLI(DEMO, "-p", "The", "-n", "2", GREEDY, "--timeline", "json", "-s", "-9");
    cli(&json);
    assert_code(&json, 0);
    json_lines lines = lines_read(json.err);
    assert_int_equal(lines.n, 1);
    assert_true(number_of(json_object_get(lines.line[0], "timeline"), "decode_tokens") == 1);
    assert_true(number_of(lines.line[0], "seed") == -9);
    assert_true(json.n_out > 0 && json.out[0] == 'T');
    lines_free(&lines);
    cli_free(&json);
    json_lines quiet = generate(CLI(DEMO, "-p", "The", "-n", "2", GREEDY, "--timeline", "none"), 0);
    assert_int_equal(quiet.n, 1);
    lines_free(&quiet);
    expect(CLI(DEMO, "-p", "The", "--timeline", "xml"), 2, "--timeline xml");
}

/* Waits until it has written something. */
static void wait_for_output(const cli_run *run, off_t n_bytes) {
    struct stat info = {0};
    for (double end = now_s() + 60; info.st_size < n_bytes && now_s() < end;) {
        usleep(2000);
        assert_int_equal(fstat(fileno(run->out_file), &info), 0);
    }
    assert_true(info.st_size >= n_bytes);
}

static void interrupted(void **state) {
    (void)state;
    cli_run run = CLI(DEMO, "-p", "Once upon a time", "-n", "2000", GREEDY, "--ignore-eos");
    cli_start(&run);
    wait_for_output(&run, 30);
    assert_int_equal(kill(run.child, SIGINT), 0);
    cli_wait(&run);
    assert_code(&run, 130);
    assert_memory_equal(run.out, "Once upon a time, there was", 27);
    assert_true(run.out[run.n_out - 1] == '\n');
    assert_non_null(strstr(run.err, "decode")); /* the timeline */
    cli_free(&run);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prompts_of_files),     cmocka_unit_test(prompt_of_a_pipe),
        cmocka_unit_test(repeated_and_several), cmocka_unit_test(choices_differ),
        cmocka_unit_test(lists_that_are_wrong), cmocka_unit_test(flags_reach_the_sampler),
        cmocka_unit_test(log_probabilities),    cmocka_unit_test(forms_of_the_timeline),
        cmocka_unit_test(interrupted),
    };
    return cmocka_run_group_tests(tests, cli_find_program, NULL);
}
