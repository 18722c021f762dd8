/*
 * Engines on a GPU (LS_DEVICE=cuda, `make gpu-check`). What transformers says is tests/e2e/test_golden.c's business; here:
 *
 *   decode against prefill   the logits of a greedy text, step by step, and of the same text as one prompt: other kernels,
 *                            the same model
 *   the same bits            of decode steps from run to run, for any number of rows, in one launch a step, with graphs and
 *                            without
 *   a step in vain           ends the engine and its requests, with the reason
 *   steps ahead              change no bit of what waiting for every step gives, and faults stay with their rows
 *   filtered rows            are drawn by the device in steps ahead, with or without the persistent kernel, as by the host
 *   ... of short prompts     in one step or each in its own: their matmuls are decode's
 *   against the CPU          dummy weights and drawn tokens are the CPU engine's
 *   memory and speed         plans are what engines take; what is measured is possible
 */
#include <math.h>

#include "../e2e/edit.h"
#include "engine/cuda_engine.h"

static const struct {
    ls_dtype dtype;
    double tolerance;
} PRECISION[] = {{LS_F32, 1e-4}, {LS_F16, 2e-3}, {LS_BF16, 2e-2}};

enum { NEW = 40, ROWS = 16 };

static const char STORY[] = "Once upon a time, there was a little dog named";

/* Of those that this GPU and LS_KERNELS let run, the one that has most of its own. */
static const char *boldest_plan(ls_model *model) {
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    const char *kernels = getenv("LS_KERNELS");
    ls_engine *engine = engine_open(model, &params);
    const cuda_rank *rank = &engine_cuda(engine)->rank;
    const bool can =
        rank->facts.cc_major >= 9 && rank->jit_us == 0 && (kernels == NULL || strcmp(kernels, "auto") == 0);
    assert_string_equal(engine->decode_plan, "graph"); /* auto */
    ls_engine_close(&engine);
    return can ? "persistent" : "graph";
}

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

static void run_with(ls_model *model, ls_dtype dtype, const char *plan, const char *graph_sizes, job *jobs,
                     bool alone) {
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    params.dtype = dtype;
    params.plan = plan;
    params.graph_sizes = graph_sizes;
    ls_engine *engine = engine_open(model, &params);
    for (size_t i = 0; alone && i < ROWS; i++) {
        jobs_run(engine, &jobs[i], 1);
    }
    if (!alone) {
        jobs_run(engine, jobs, ROWS);
    }
    ls_engine_close(&engine);
}

/* Of both plans: texts are short enough for that (kern/decode_attn.cu: eight units). */
static void decode_bits_do_not_depend_on_rows(void **state) {
    (void)state;
    ls_model *model = demo_model();
    const char *boldest = boldest_plan(model);
    const struct {
        const char *what, *plan, *graph_sizes;
        bool alone;
    } runs[] = {{"batch", boldest, NULL, false},
                {"again", boldest, NULL, true},
                {"graphs", NULL, NULL, false},
                {"no graphs", NULL, "none", false},
                {"one graph", NULL, "16", true}};
    int32_t id[ROWS];
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
            run_with(model, dtype, runs[v].plan, runs[v].graph_sizes, jobs, runs[v].alone);
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

/* Sequences that come, go, stop and are taken away while steps are ahead. Prompts of one token, so that the decode kernels
 * run everything whoever is in a step. */
static void steps_ahead_change_nothing(void **state) {
    (void)state;
    static const char *const graph_sizes[] = {NULL, NULL, "none", "1,2"};
    int32_t id[ROWS];
    ls_model *model = demo_model();
    const char *boldest = boldest_plan(model);
    for (int i = 0; i < ROWS; i++) {
        id[i] = 300 + 17 * i;
    }
    for (size_t k = 0; k < 2 * COUNT(graph_sizes); k++) {
        job jobs[2][ROWS];
        for (int ahead = 0; ahead < 2; ahead++) {
            ls_engine_params params = LS_ENGINE_PARAMS_INIT;
            params.dtype = LS_BF16;
            params.plan = k / 2 == 0 ? boldest : NULL;
            params.graph_sizes = graph_sizes[k / 2];
            params.async_scheduling = ahead ? "auto" : "off";
            ls_engine *engine = engine_open(model, &params);
            fill(jobs[ahead], id, k % 2 == 1);
            for (int i = 0; i < ROWS; i++) {
                job *j = &jobs[ahead][i];
                j->max_tokens = 20 + 12 * i;
                j->no_hash = j->stop_at_eos = true;
                j->join_step = i % 3 == 2 ? 5 * i : 0;
                j->leave_step = i % 5 == 4 ? 5 * i + 9 : 0;
            }
            int n_steps = jobs_run(engine, jobs[ahead], ROWS);
            int64_t n_ahead = engine->stats.ahead_steps;
            print_message("%d steps, %lld of them ahead\n", n_steps, (long long)n_ahead);
            assert_true(ahead ? n_ahead > n_steps / 2 : n_ahead == 0);
            ls_engine_close(&engine);
        }
        for (int i = 0; i < ROWS; i++) {
            char what[64];
            snprintf(what, sizeof what, "plan %d, graphs %s, %s, prompt %d", (int)(k / 2),
                     graph_sizes[k / 2] != NULL ? graph_sizes[k / 2] : "", k % 2 == 1 ? "sampled" : "greedy", i);
            if (jobs[0][i].leave_step == 0) {
                assert_same_answer(&jobs[0][i], &jobs[1][i], what);
            } else { /* taken away between two steps: as far as both came */
                int n = jobs[0][i].n_token < jobs[1][i].n_token ? jobs[0][i].n_token : jobs[1][i].n_token;
                assert_memory_equal(jobs[0][i].token, jobs[1][i].token, (size_t)n * sizeof(int32_t));
            }
        }
        jobs_clear(jobs[0], ROWS);
        jobs_clear(jobs[1], ROWS);
    }
    ls_model_close(&model);
}

/* Where a hash of the logits is asked for the host draws, from the same logits; else the device does, and steps run ahead. */
static void filtered_rows_run_ahead(void **state) {
    (void)state;
    static const struct {
        double temperature, top_p, min_p;
        int top_k;
    } filters[] = {{0.6, 0.95, 0, 20}, {1, 0.9, 0, 0},    {1, 0, 0.05, 0},   {0, 0, 0, 0},
                   {1.2, 0, 0, 0},     {0.9, 0, 0, 256},  {2, 0.99, 0, 300}, {3, 0, 0.001, 500},
                   {1, 0.5, 0.01, 0},  {1, 0.8, 0, 4095}, {1, 0, 0, 1}};
    ls_model *model = demo_model();
    const struct {
        const char *what, *plan, *ahead;
        bool on_host;
    } runs[] = {{"by the host", NULL, "auto", true},
                {"ahead", NULL, "auto", false},
                {"waited for", NULL, "off", false},
                {"boldest", boldest_plan(model), "auto", false}};
    job jobs[COUNT(runs)][ROWS];
    int32_t id[ROWS];
    for (size_t v = 0; v < COUNT(runs); v++) {
        ls_engine_params params = LS_ENGINE_PARAMS_INIT;
        params.dtype = LS_F32;
        params.plan = runs[v].plan;
        params.async_scheduling = runs[v].ahead;
        ls_engine *engine = engine_open(model, &params);
        for (int i = 0; i < ROWS; i++) {
            const size_t f = (size_t)i % COUNT(filters);
            id[i] = 300 + 17 * i;
            jobs[v][i] = (job){.id = &id[i],
                               .n_id = 1,
                               .max_tokens = NEW / 2 + i,
                               .temperature = filters[f].temperature,
                               .top_k = filters[f].top_k,
                               .top_p = filters[f].top_p,
                               .min_p = filters[f].min_p,
                               .seed = (uint64_t)i,
                               .no_hash = !runs[v].on_host};
        }
        const int n_steps = jobs_run(engine, jobs[v], ROWS);
        const int64_t n_ahead = engine->stats.ahead_steps;
        print_message("%s: %d steps, %lld of them ahead\n", runs[v].what, n_steps, (long long)n_ahead);
        assert_true(runs[v].on_host || strcmp(runs[v].ahead, "off") == 0 ? n_ahead == 0 : n_ahead > n_steps / 2);
        ls_engine_close(&engine);
        for (int i = 0; i < ROWS; i++) {
            jobs[v][i].hash = 0;
            assert_same_answer(&jobs[0][i], &jobs[v][i], runs[v].what);
        }
    }
    for (size_t v = 0; v < COUNT(runs); v++) {
        jobs_clear(jobs[v], ROWS);
    }
    ls_model_close(&model);
}

/* A request whose first step overflows between two others, whose rows move up when it has failed. All prompts are of one
 * token: the decode kernels run them; then of three: the prefill kernels do. */
static void overflow_fails_only_its_request(void **state) {
    (void)state;
    static const int32_t cold[] = {1, 2, 3}, hot[] = {HOT, HOT, HOT}, other[] = {8, 9, 10};
    golden_list list;
    golden_case *c = open_copy(&list, "ckpt_f32");
    make_hot(c);
    ls_model *model = golden_model(c);
    for (int run = 0; run < 4; run++) {
        const bool ahead = run % 2 == 0;
        const int n_id = run < 2 ? 1 : 3;
        ls_engine_params params = LS_ENGINE_PARAMS_INIT;
        params.dtype = LS_F16;
        params.async_scheduling = ahead ? "auto" : "off";
        ls_engine *engine = engine_open(model, &params);
        job jobs[] = {{.id = cold, .n_id = n_id, .max_tokens = 20, .no_hash = true},
                      {.id = hot, .n_id = n_id, .max_tokens = 20, .no_hash = true, .join_step = 4},
                      {.id = other, .n_id = n_id, .max_tokens = 20, .no_hash = true, .join_step = 4}};
        jobs_run(engine, jobs, 3);
        assert_true(ahead == (engine->stats.ahead_steps > 0));
        assert_int_equal(jobs[1].status, LS_ENUMERIC);
        assert_non_null(strstr(jobs[1].error, "position 0"));
        for (int i = 0; i < 3; i += 2) {
            assert_string_equal(jobs[i].error, "");
            assert_int_equal(jobs[i].finish, LS_FINISH_LENGTH);
            assert_int_equal(jobs[i].n_token, 20);
        }
        jobs_clear(jobs, 3);
        ls_engine_close(&engine);
    }
    ls_model_close(&model);
    golden_close(&list);
}

/* Alone and all three together they are rows of one engine (prefill.c, few_rows): wide.c takes more than 16, decode's kernels at
 * most 32. In f32 so many rows are cuBLASLt's, which has other sums for other numbers of them. */
static void short_prompts_have_their_own_bits(void **state) {
    (void)state;
    enum { LONGEST = 24 };
    static const int of_wide[] = {17, 20, LONGEST}, of_decode[] = {7, 9, 12};
    int32_t id[LONGEST];
    ls_model *model = demo_model();
    for (int i = 0; i < LONGEST; i++) {
        id[i] = 300 + 17 * i;
    }
    for (size_t k = 0; k < COUNT(PRECISION); k++) {
        ls_engine_params params = LS_ENGINE_PARAMS_INIT;
        params.dtype = PRECISION[k].dtype;
        if (params.dtype == LS_F32) {
            continue;
        }
        ls_engine *engine = engine_open(model, &params);
        const int *length = engine_cuda(engine)->rank.wide ? of_wide : of_decode;
        job alone[COUNT(of_wide)], together[COUNT(of_wide)];
        for (size_t i = 0; i < COUNT(alone); i++) {
            alone[i] = together[i] = (job){.id = id, .n_id = length[i], .max_tokens = 4};
            jobs_run(engine, &alone[i], 1);
        }
        jobs_run(engine, together, COUNT(alone));
        for (size_t i = 0; i < COUNT(alone); i++) {
            char what[64];
            snprintf(what, sizeof what, "%s, prompt of %d tokens", ls_dtype_name(params.dtype), length[i]);
            assert_same_answer(&alone[i], &together[i], what);
        }
        jobs_clear(alone, COUNT(alone));
        jobs_clear(together, COUNT(alone));
        ls_engine_close(&engine);
    }
    ls_model_close(&model);
}

/* In f32 the noise decides, not the rounding: the same seeds give the CPU's text. */
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

/* What a wait in vain leaves behind, left behind by the test: who runs on finds it and stops at once. */
static void a_step_in_vain_is_told(void **state) {
    (void)state;
    ls_model *model = demo_model();
    ls_engine_params params = LS_ENGINE_PARAMS_INIT;
    ls_engine *engine = NULL;
    params.plan = boldest_plan(model);
    print_message("plan: %s\n", params.plan);
    if (strcmp(params.plan, "persistent") == 0) {
        engine = engine_open(model, &params);
        assert_string_equal(engine->decode_plan, "persistent");
        ls_request_params ask = LS_REQUEST_PARAMS_INIT;
        ls_request *request[2] = {NULL};
        ls_error err = {0};
        ask.prompt = STORY;
        ask.prompt_bytes = strlen(STORY);
        ask.max_tokens = 20;
        for (size_t i = 0; i < COUNT(request); i++) {
            ASSERT_OK(ls_request_submit(engine, &ask, &request[i], &err), &err);
        }
        *engine->host.persist_stuck = (persist_stuck){.claimed = 1, .op = 1, .layer = 0, .block = 7};
        ls_status st = ls_engine_step(engine, &err);
        print_message("%s\n", err.text);
        assert_int_equal(st, LS_EABORTED);
        for (size_t i = 0; i < COUNT(request); i++) {
            ls_result result = LS_RESULT_INIT;
            ASSERT_OK(ls_request_get_result(request[i], &result, &err), &err);
            assert_int_equal(result.status, LS_EABORTED);
            assert_non_null(strstr(result.error, "block 7"));
            assert_non_null(strstr(result.error, "layer 0"));
            ls_request_free(&request[i]);
        }
        ls_engine_close(&engine);
    } else { /* chips before Hopper, --kernels generic */
        params.plan = "persistent";
        params.device = "cuda";
        params.kernels = getenv("LS_KERNELS");
        assert_int_not_equal(ls_engine_open(model, &params, &engine, NULL), LS_OK);
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

/* `lockstep plan` and the arenas, to the byte; where memory is what limits the cache, other programs move it a little. */
static void plans_equal_engines(void **state) {
    (void)state;
    static const struct {
        ls_dtype dtype;
        ls_quantization quantization;
        int seqs, len, rows;
        int64_t kv_bytes;
    } cases[] = {{LS_AUTO, LS_QUANTIZATION_NONE, 0, 0, 0, 0},
                 {LS_F32, LS_QUANTIZATION_NONE, 3, 100, 40, 0},
                 {LS_F16, LS_QUANTIZATION_W8A16, 33, 2048, 1000, 64 << 20},
                 {LS_F32, LS_QUANTIZATION_NONE, 4096, 0, 4096, 0}};
    ls_model *model = demo_model();
    for (size_t i = 0; i < COUNT(cases); i++) {
        ls_engine_params params = LS_ENGINE_PARAMS_INIT;
        ls_plan_report plan = LS_PLAN_REPORT_INIT;
        ls_error err = {0};
        params.device = "cuda";
        params.dtype = cases[i].dtype;
        params.quantization = cases[i].quantization;
        params.max_num_seqs = cases[i].seqs;
        params.max_model_len_tokens = cases[i].len;
        params.max_num_batched_tokens = cases[i].rows;
        params.kv_cache_memory_bytes = cases[i].kv_bytes;
        ASSERT_OK(ls_plan_make(model, &params, &plan, &err), &err);
        ls_engine *engine = engine_open(model, &params);
        const engine_config *config = &engine->config;
        assert_true(plan.on_gpu && plan.driver_measured);
        print_message("plan %zu: %d pages, %.2f GB, driver %.2f GB\n", i, plan.n_pages, (double)plan.total_bytes / 1e9,
                      (double)plan.driver_bytes / 1e9);
        assert_int_equal(plan.n_threads, config->n_threads);
        assert_true(abs(plan.n_pages - config->n_pages) <= config->n_pages / 100);
        for (int tag = 0; tag < MEM_TAGS && plan.n_pages == config->n_pages; tag++) {
            assert_int_equal(plan.rank_bytes[0][tag], engine->rank_arena[0].by_tag[tag]);
            assert_int_equal(plan.shared_bytes[tag], engine->host_arena.by_tag[tag]);
        }
        assert_true(plan.n_pages == config->n_pages || i == 3);
        ls_engine_close(&engine);
    }
    ls_model_close(&model);
}

static void what_doctor_measures(void **state) {
    (void)state;
    ls_gpu_info info = LS_GPU_INFO_INIT;
    ls_gpu_speed speed = LS_GPU_SPEED_INIT;
    ls_error err = {0};
    int n = 0;
    ASSERT_OK(ls_gpu_count(&n, &err), &err);
    ASSERT_OK(ls_gpu_get_info(n - 1, &info, &err), &err);
    ASSERT_OK(ls_gpu_measure(n - 1, &speed, &err), &err);
    assert_true(n >= 1 && strlen(info.name) > 3 && info.n_sms > 0 && strncmp(info.chip, "sm_", 3) == 0);
    assert_true(strncmp(info.kernels, "sm_", 3) == 0 || strncmp(info.kernels, "compute_", 8) == 0);
    assert_true(speed.free_bytes > 0 && speed.free_bytes < info.memory_bytes);
    assert_true(speed.read.median > 1e10 && speed.read.best < 2e13 && speed.read.median <= speed.read.best);
    assert_true(speed.to_device.best > 1e8 && speed.to_device.best < speed.read.best);
    assert_true(speed.to_host.best > 1e8 && speed.to_host.best < speed.read.best);
    assert_true(speed.kernel_us > 0.1 && speed.kernel_us < 100);
    assert_true(speed.gemm_flops.best > 1e11 || strlen(speed.no_gemm) > 10);
    assert_true(speed.gemm_f32_flops.best < speed.gemm_flops.best || speed.gemm_flops.best <= 0);
    assert_true(speed.copy.best > 1e10 && speed.copy.best < 2e13);
    ASSERT_FAILS(ls_gpu_get_info(n, &info, &err), &err, LS_ENOTFOUND, "no GPU");
    ASSERT_FAILS(ls_gpu_get_info(-1, &info, &err), &err, LS_EINVAL, "GPU -1");
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
    assert_null(engine);
    ls_model_close(&model);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(decode_agrees_with_prefill_and_cpu),
        cmocka_unit_test(decode_bits_do_not_depend_on_rows),
        cmocka_unit_test(steps_ahead_change_nothing),
        cmocka_unit_test(filtered_rows_run_ahead),
        cmocka_unit_test(overflow_fails_only_its_request),
        cmocka_unit_test(short_prompts_have_their_own_bits),
        cmocka_unit_test(drawn_tokens_are_the_cpus),
        cmocka_unit_test(a_step_in_vain_is_told),
        cmocka_unit_test(generic_kernels_agree),
        cmocka_unit_test(plans_equal_engines),
        cmocka_unit_test(what_doctor_measures),
        cmocka_unit_test(errors_name_the_cause),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
