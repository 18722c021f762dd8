/*
 * lockstep perplexity against transformers on the demo model: the figures are those of
 *     tools/perplexity_reference.py demo tests/golden/perplexity.txt --window N
 * in f32, which the 16-bit types come close to. The result does not depend on the batch or the ranks.
 */
#include <math.h>

#include "cli_run.h"

#define TEXT "tests/golden/perplexity.txt"
#define PERPLEXITY "perplexity", "demo", "-f", TEXT

static double nll_of(cli_run run, double *perplexity) {
    json_lines lines = generate(run, 0);
    assert_int_equal(lines.n, 1);
    double nll = number_of(lines.line[0], "nll");
    double value = number_of(lines.line[0], "perplexity");
    assert_true(fabs(value / exp(nll) - 1) < 1e-9);
    assert_true(number_of(lines.line[0], "seconds") > 0 && number_of(lines.line[0], "tokens_per_s") > 0);
    if (perplexity != NULL) {
        *perplexity = value;
    }
    lines_free(&lines);
    return nll;
}

static void as_transformers(void **state) {
    (void)state;
    static const struct {
        const char *dtype, *window;
        double nll, tolerance;
    } cases[] = {
        {"f32", "64", 3.7613929718431693, 1e-6},  {"f32", "2048", 3.6805013450152675, 1e-6},
        {"bf16", "64", 3.7613929718431693, 5e-4}, {"bf16", "2048", 3.6805013450152675, 5e-4},
        {"f16", "64", 3.7613929718431693, 1e-4},  {"f16", "2048", 3.6805013450152675, 1e-4},
    };
    for (size_t i = 0; i < COUNT(cases); i += sanitized() ? 3 : 1) {
        double nll = nll_of(CLI(PERPLEXITY, "--max-model-len", cases[i].window, "--dtype", cases[i].dtype), NULL);
        if (!(fabs(nll / cases[i].nll - 1) < cases[i].tolerance)) {
            fail_msg("%s, windows of %s: %.9f instead of %.9f", cases[i].dtype, cases[i].window, nll, cases[i].nll);
        }
    }
}

static void whatever_the_batch(void **state) {
    (void)state;
    double one = nll_of(CLI(PERPLEXITY, "--max-model-len", "32", "--max-num-seqs", "1"), NULL);
    double many = nll_of(CLI(PERPLEXITY, "--max-model-len", "32", "--max-num-seqs", "3", "-tp", "2", "-t", "1"), NULL);
    assert_true(one == many);
    if (sanitized()) {
        return;
    }
    double other = nll_of(CLI(PERPLEXITY, "--max-model-len", "33"), NULL);
    assert_true(one != other);
}

static void windows_and_counts(void **state) {
    (void)state;
    /* 176 tokens: a last window of one token is left out. */
    static const struct {
        const char *window;
        double windows, scored;
    } cases[] = {{"64", 3, 173}, {"88", 2, 174}, {"175", 1, 174}, {"174", 2, 174}, {"2048", 1, 175}};
    for (size_t i = 0; i < COUNT(cases); i += sanitized() ? 4 : 1) {
        json_lines lines = generate(CLI(PERPLEXITY, "--max-model-len", cases[i].window), 0);
        assert_true(number_of(lines.line[0], "windows") == cases[i].windows);
        assert_true(number_of(lines.line[0], "scored_tokens") == cases[i].scored);
        assert_true(number_of(lines.line[0], "tokens") == 176);
        assert_true(number_of(lines.line[0], "window_tokens") == atof(cases[i].window));
        lines_free(&lines);
    }
    expect(CLI(PERPLEXITY), 0, ">tokens       175 scored of 176, in 1 windows of 2048\n");
}

static void what_it_refuses(void **state) {
    (void)state;
    expect(CLI("perplexity", "demo"), 2, "one text");
    expect(CLI("perplexity", "-f", TEXT), 2, "needs a model");
    expect(CLI(PERPLEXITY, "-f", TEXT), 2, "one text");
    expect(CLI("perplexity", "demo", "-f", "/nowhere/a.txt"), 1, "/nowhere/a.txt");
    expect(CLI("perplexity", "demo", "-f", "/dev/null"), 2, "/dev/null: a text of 0 tokens");
    expect(CLI(PERPLEXITY, "--max-model-len", "1"), 2, "--max-model-len 1");
    cli_run one = CLI("perplexity", "demo", "-f", "-");
    one.input = "a";
    expect(one, 2, "none that could be predicted");
    cli_run piped = CLI("perplexity", "demo", "-f", "-");
    piped.input = "Once upon a time";
    piped.env[0] = "LOCKSTEP_PROMPT=not this one";
    expect(piped, 0, ">tokens       3 scored of 4, in 1 windows of 2048\n");
    expect(CLI("perplexity", "--help"), 0, ">do not overlap");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(as_transformers),
        cmocka_unit_test(whatever_the_batch),
        cmocka_unit_test(windows_and_counts),
        cmocka_unit_test(what_it_refuses),
    };
    return cmocka_run_group_tests(tests, cli_find_program, NULL);
}
