/*
 * Engines on a GPU (LS_DEVICE=cuda, `make gpu-check`). What transformers says is tests/e2e/test_golden.c's business; here:
 *
 *   decode against prefill   the logits of a greedy text, step by step, and of the same text as one prompt: other kernels,
 *                            the same model
 *   the same bits            of decode steps from run to run, for any number of rows, with graphs and without
 *   ... of short prompts     in one step or each in its own: their matmuls are decode's
 *   against the CPU          dummy weights and drawn tokens are the CPU engine's
 */
#include <math.h>

#include "../e2e/e2e.h"

static const struct {
    ls_dtype dtype;
    double tolerance;
} PRECISION[] = {{LS_F32, 1e-4}, {LS_F16, 2e-3}, {LS_BF16, 2e-2}};

enum { NEW = 40, ROWS = 16 };

static const char STORY[] = "Once upon a time, there was a little dog named";

static float *new_rows(int n_rows, int n_vocab) {
    float *rows = calloc((size_t)n_rows * (size_t)n_vocab, sizeof *rows);
    assert_non_null(rows);
    return rows;
}

static int vocabulary(const ls_model *model) {
    ls_model_info info = LS_MODEL_INFO_INIT;
    assert_int_equal(ls_model_get_info(model, &info, NULL), LS_OK);
    return info.n_vocab;
}

/* The text that `told` was given, as one prompt on `engine`: logits of all positions. */
static void run_as_prompt(ls_engine *engine, const job *told, int32_t *ids, job *out, int n_vocab) {
    int n = told->n_prompt + told->n_token;
    memcpy(ids, told->prompt_token, (size_t)told->n_prompt * sizeof *ids);
    memcpy(ids + told->n_prompt, told->token, (size_t)told->n_token * sizeof *ids);
    *out = (job){.id = ids, .n_id = n, .prompt_logits = true, .n_rows = n, .logits = new_rows(n, n_vocab)};
    jobs_run(engine, out, 1);
}

static double worst_row(const job *a, const job *b, int first, int last, int n_vocab) {
    double worst = 0;
    for (int pos = first; pos < last; pos++) {
        size_t at = (size_t)pos * (size_t)n_vocab;
        worst = fmax(worst, row_error(a->logits + at, b->logits + at, n_vocab));
    }
    return worst;
}

static void decode_agrees_with_prefill_and_cpu(void **state) {
    (void)state;
    ls_model *model = demo_model();
    const int n_vocab = vocabulary(model);
    for (size_t k = 0; k < COUNT(PRECISION); k++) {
        ls_engine_params params = LS_ENGINE_PARAMS_INIT, on_cpu = LS_ENGINE_PARAMS_INIT;
        params.dtype = on_cpu.dtype = PRECISION[k].dtype;
        on_cpu.device = "cpu";
        ls_engine *engine = engine_open(model, &params), *cpu = engine_open(model, &on_cpu);
        job told = {.text = STORY, .max_tokens = NEW, .n_rows = 128, .logits = new_rows(128, n_vocab)};
        job prompt, referee;
        int32_t ids[128];
        jobs_run(engine, &told, 1);
        run_as_prompt(engine, &told, ids, &prompt, n_vocab);
        run_as_prompt(cpu, &told, ids, &referee, n_vocab);
        int first = told.n_prompt, last = told.n_prompt + told.n_token - 1; /* positions of decode steps */
        double decode = worst_row(&told, &referee, first, last, n_vocab);
        double prefill = worst_row(&prompt, &referee, 0, last, n_vocab);
        double both = worst_row(&told, &prompt, first, last, n_vocab);
        print_message("%-4s worst row: decode to CPU %.1e, prefill to CPU %.1e, decode to prefill %.1e\n",
                      ls_dtype_name(params.dtype), decode, prefill, both);
        assert_true(last - first > NEW / 2);
        assert_true(decode <= 2 * PRECISION[k].tolerance && prefill <= 2 * PRECISION[k].tolerance &&
                    both <= 2 * PRECISION[k].tolerance);
        free(told.logits);
        free(prompt.logits);
        free(referee.logits);
        jobs_clear(&told, 1);
        jobs_clear(&prompt, 1);
        jobs_clear(&referee, 1);
        ls_engine_close(&engine);
        ls_engine_close(&cpu);
    }
    ls_model_close(&model);
}

/* Prompts of one token, so that all go through one step of prefill, and texts of different length, so that decode steps
 * have any number of rows from 16 to 1. */
static void fill(job jobs[ROWS], const int32_t id[ROWS], bool sampled) {
    for (int i = 0; i < ROWS; i++) {
        jobs[i] = (job){
            .id = &id[i], .n_id = 1, .max_tokens = 6 + 4 * i, .temperature = sampled ? 0.9 : 0, .seed = (uint64_t)i};
    }
}

static void run_with(ls_model *model, ls_dtype dtype, const char *graph_sizes, const char *kernels, job *jobs,
                     bool alone) {
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    params.dtype = dtype;
    params.graph_sizes = graph_sizes;
    params.kernels = kernels;
    ls_engine *engine = engine_open(model, &params);
    for (size_t i = 0; alone && i < ROWS; i++) {
        jobs_run(engine, &jobs[i], 1);
    }
    if (!alone) {
        jobs_run(engine, jobs, ROWS);
    }
    ls_engine_close(&engine);
}

static void decode_bits_do_not_depend_on_rows(void **state) {
    (void)state;
    static const struct {
        const char *what, *graph_sizes;
        bool alone;
    } runs[] = {{"batch", NULL, false}, {"again", NULL, true}, {"no graphs", "none", false}, {"one graph", "16", true}};
    int32_t id[ROWS];
    ls_model *model = demo_model();
    for (int i = 0; i < ROWS; i++) {
        id[i] = 300 + 17 * i;
    }
    for (size_t k = 0; k < 2 * COUNT(PRECISION); k++) {
        ls_dtype dtype = PRECISION[k / 2].dtype;
        job alone[ROWS], jobs[ROWS];
        fill(alone, id, k % 2 == 1);
        run_with(model, dtype, NULL, NULL, alone, true);
        for (size_t v = 0; v < COUNT(runs); v++) {
            fill(jobs, id, k % 2 == 1);
            run_with(model, dtype, runs[v].graph_sizes, NULL, jobs, runs[v].alone);
            for (int i = 0; i < ROWS; i++) {
                char what[96];
                snprintf(what, sizeof what, "%s, %s, %s, prompt %d", ls_dtype_name(dtype), runs[v].what,
                         k % 2 == 1 ? "sampled" : "greedy", i);
                assert_same_answer(&alone[i], &jobs[i], what);
            }
            jobs_clear(jobs, ROWS);
        }
        jobs_clear(alone, ROWS);
    }
    ls_model_close(&model);
}

/* Three prompts of 28 tokens in all. */
static void short_prompts_have_their_own_bits(void **state) {
    (void)state;
    static const int length[] = {7, 9, 12};
    int32_t id[12];
    ls_model *model = demo_model();
    for (int i = 0; i < 12; i++) {
        id[i] = 300 + 17 * i;
    }
    for (size_t k = 0; k < COUNT(PRECISION); k++) {
        ls_engine_params params = LS_ENGINE_PARAMS_INIT;
        params.dtype = PRECISION[k].dtype;
        ls_engine *engine = engine_open(model, &params);
        job alone[COUNT(length)], together[COUNT(length)];
        for (size_t i = 0; i < COUNT(length); i++) {
            alone[i] = together[i] = (job){.id = id, .n_id = length[i], .max_tokens = 4};
            jobs_run(engine, &alone[i], 1);
        }
        jobs_run(engine, together, COUNT(length));
        for (size_t i = 0; i < COUNT(length); i++) {
            char what[64];
            snprintf(what, sizeof what, "%s, prompt of %d tokens", ls_dtype_name(params.dtype), length[i]);
            assert_same_answer(&alone[i], &together[i], what);
        }
        jobs_clear(alone, COUNT(length));
        jobs_clear(together, COUNT(length));
        ls_engine_close(&engine);
    }
    ls_model_close(&model);
}

/* In f32 the noise decides, not the rounding: the same seeds give the CPU's text, drawn on the device (no filter) or by
 * the host (top-k). */
static void drawn_tokens_are_the_cpus(void **state) {
    (void)state;
    ls_model *model = demo_model();
    for (int filtered = 0; filtered < 2; filtered++) {
        job jobs[2][ROWS];
        for (int run = 0; run < 2; run++) {
            ls_engine_params params = LS_ENGINE_PARAMS_INIT;
            params.dtype = LS_F32;
            params.device = run == 0 ? "cpu" : NULL;
            ls_engine *engine = engine_open(model, &params);
            for (int i = 0; i < ROWS; i++) {
                jobs[run][i] = (job){.text = STORY,
                                     .max_tokens = NEW,
                                     .temperature = 0.8,
                                     .top_k = filtered ? 40 : 0,
                                     .no_hash = true,
                                     .seed = (uint64_t)(100 + i)};
            }
            jobs_run(engine, jobs[run], ROWS);
            ls_engine_close(&engine);
        }
        int n_same = 0;
        for (int i = 0; i < ROWS; i++) {
            n_same += memcmp(jobs[0][i].token, jobs[1][i].token, NEW * sizeof(int32_t)) == 0;
        }
        print_message("%s: %d of %d texts are the CPU's\n", filtered ? "top-k 40" : "no filter", n_same, ROWS);
        assert_true(n_same >= ROWS - 1); /* one may stand on a knife's edge */
        jobs_clear(jobs[0], ROWS);
        jobs_clear(jobs[1], ROWS);
    }
    ls_model_close(&model);
}

/* The kernels for chips that are not known, if the build has them: within the tolerance of the tuned ones. */
static void generic_kernels_agree(void **state) {
    (void)state;
    if (strstr(ls_cuda_archs(), "compute_") == NULL) {
        skip();
    }
    ls_model *model = demo_model();
    const int n_vocab = vocabulary(model);
    for (size_t k = 0; k < COUNT(PRECISION); k++) {
        job told[2];
        for (int generic = 0; generic < 2; generic++) {
            ls_engine_params params = LS_ENGINE_PARAMS_INIT;
            params.dtype = PRECISION[k].dtype;
            params.kernels = generic ? "generic" : "auto";
            ls_engine *engine = engine_open(model, &params);
            told[generic] = (job){.text = STORY, .max_tokens = 8, .n_rows = 64, .logits = new_rows(64, n_vocab)};
            jobs_run(engine, &told[generic], 1);
            ls_engine_close(&engine);
        }
        double worst = row_error(told[0].logits + (size_t)(told[0].n_prompt - 1) * (size_t)n_vocab,
                                 told[1].logits + (size_t)(told[1].n_prompt - 1) * (size_t)n_vocab, n_vocab);
        print_message("%-4s generic against tuned kernels: %.1e\n", ls_dtype_name(PRECISION[k].dtype), worst);
        assert_true(worst <= 2 * PRECISION[k].tolerance);
        for (int generic = 0; generic < 2; generic++) {
            free(told[generic].logits);
            jobs_clear(&told[generic], 1);
        }
    }
    ls_model_close(&model);
}

static void errors_name_the_cause(void **state) {
    (void)state;
    ls_model *model = demo_model();
    ls_engine *engine = NULL;
    ls_error err = {0};
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    params.device = "cuda:99";
    ASSERT_FAILS(ls_engine_open(model, &params, &engine, &err), &err, LS_ENOTFOUND, "no GPU 99");
    params.device = "cuda";
    params.kv_cache_memory_bytes = (int64_t)1 << 49;
    params.max_num_seqs = 4096;
    params.max_num_batched_tokens = 1 << 20;
    params.dtype = LS_F32;
    ASSERT_FAILS(ls_engine_open(model, &params, &engine, &err), &err, LS_ENOMEM, "the plan needs", "free");
    params = (ls_engine_params)LS_ENGINE_PARAMS_INIT;
    params.device = "cuda";
    params.tensor_parallel_size = 2;
    ASSERT_FAILS(ls_engine_open(model, &params, &engine, &err), &err, LS_EUNSUPPORTED, "--tensor-parallel-size 2");
    assert_null(engine);
    ls_model_close(&model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decode_agrees_with_prefill_and_cpu),
        cmocka_unit_test(decode_bits_do_not_depend_on_rows),
        cmocka_unit_test(short_prompts_have_their_own_bits),
        cmocka_unit_test(drawn_tokens_are_the_cpus),
        cmocka_unit_test(generic_kernels_agree),
        cmocka_unit_test(errors_name_the_cause),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
