/*
 * lockstep perplexity on a GPU (`make gpu-check`) beside the CPU, on the demo model, in each run dtype and with int8 weights.
 *
 * Both round the same values to the same dtype but add in other orders, so tokens' probabilities differ by rounding, up or
 * down at random, and a mean over n tokens by sqrt(n) less. The tolerances are those within which tests/e2e/test_perplexity.c
 * finds the CPU's figures of transformers' in f32: what rounding to the dtype as a whole does, of which another order of sums
 * is a part. int8 weights are the same bytes on both (test_load.c), so that the run dtype's tolerance holds for them too.
 */
#include <math.h>

#include "../e2e/cli_run.h"

static double nll_on(const char *device, const char *dtype, const char *quantization, const char *window,
                     const char *seats) {
    const char *kernels = getenv("LS_KERNELS");
    json_lines lines = generate(CLI("perplexity", "demo", "-f", "tests/golden/perplexity.txt", "--device", device,
                                    "--kernels", kernels != NULL ? kernels : "auto", "--dtype", dtype, "-q",
                                    quantization, "--max-model-len", window, "--max-num-seqs", seats),
                                0);
    assert_int_equal(lines.n, 1);
    const double nll = number_of(lines.line[0], "nll");
    lines_free(&lines);
    return nll;
}

static void as_the_cpu(void **state) {
    (void)state;
    static const struct {
        const char *dtype;
        double tolerance;
    } dtypes[] = {{"f32", 1e-6}, {"f16", 1e-4}, {"bf16", 5e-4}};
    static const char *const quantizations[] = {"none", "w8a16"};
    /* Three windows as a batch, in steps of some 80 rows; one window as one step of its 175 rows. */
    static const char *const windows[][2] = {{"64", "16"}, {"2048", "256"}};
    for (size_t w = 0; w < COUNT(windows); w++) {
        double f32_nll[COUNT(quantizations)] = {0};
        for (size_t d = 0; d < COUNT(dtypes); d++) {
            for (size_t q = 0; q < COUNT(quantizations); q++) {
                const char *dtype = dtypes[d].dtype, *quantization = quantizations[q];
                const double gpu = nll_on("cuda", dtype, quantization, windows[w][0], windows[w][1]);
                const double cpu = nll_on("cpu", dtype, quantization, windows[w][0], windows[w][1]);
                const double apart = fabs(gpu / cpu - 1);
                print_message("%-4s %-5s windows of %4s: GPU %.7f, CPU %.7f, %.1e apart (at most %.0e)\n", dtype,
                              quantization, windows[w][0], gpu, cpu, apart, dtypes[d].tolerance);
                assert_true(cpu > 3 && cpu < 4);
                assert_true(apart < dtypes[d].tolerance);
                f32_nll[q] = d == 0 ? gpu : f32_nll[q];
            }
        }
        assert_true(fabs(f32_nll[1] / f32_nll[0] - 1) > 1e-4); /* int8 shows: the tolerance tells them apart */
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(as_the_cpu)};
    return cmocka_run_group_tests(tests, cli_find_program, NULL);
}
